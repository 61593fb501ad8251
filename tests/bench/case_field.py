"""Who takes part over datasets."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.bench.case_plain import Batched
from tests.bench.case_sonde import CaseSocket
from tests.bench.contender import Entry
from tests.bench.shapes import load

CASE_PEERS = ("plain", "nnsight", "transformer-lens")


@contextmanager
def case_contenders(
    directory: Path, peers: Sequence[str], serving: AbstractContextManager[str]
) -> Iterator[tuple[CaseSocket, list[Entry]]]:
    """Sonde over the socket first, and these peers, each with a model of its own, of the same weights."""
    with ExitStack() as stack:
        sonde = CaseSocket(stack.enter_context(serving))
        stack.callback(sonde.close)
        entries = [Entry(sonde, "sonde")]
        if "plain" in peers:
            entries.append(Entry(Batched(load(directory)), "hand"))
        if "nnsight" in peers:
            from tests.bench import case_nnsight

            entries.append(Entry(case_nnsight.Skipping(load(directory)), "library"))
            entries.append(Entry(case_nnsight.Loop(load(directory)), "library", loop=True))
        if "transformer-lens" in peers:
            from tests.bench.case_transformer_lens import Loop

            entries.append(Entry(Loop(load(directory), directory), "library", loop=True))
        yield sonde, entries
