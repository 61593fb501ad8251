"""Who takes part where circuits are asked about."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.bench.circuit_plain import PrefixCache, Published
from tests.bench.circuit_sonde import CircuitSocket
from tests.bench.contender import Entry
from tests.bench.shapes import load


@contextmanager
def circuit_contenders(
    directory: Path, peers: Sequence[str], serving: AbstractContextManager[str]
) -> Iterator[tuple[CircuitSocket, list[Entry]]]:
    """Sonde over the socket first; what is published, and what is written by hand, with plain transformers."""
    with ExitStack() as stack:
        sonde = CircuitSocket(stack.enter_context(serving))
        stack.callback(sonde.close)
        entries = [Entry(sonde, "sonde")]
        if "plain" in peers:
            entries.append(Entry(Published(load(directory)), "script"))
            entries.append(Entry(PrefixCache(load(directory)), "hand"))
        yield sonde, entries
