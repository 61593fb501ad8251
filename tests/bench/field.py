"""Who takes part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from tests.bench.contender import Entry
from tests.bench.elsewhere import Elsewhere
from tests.bench.plain import PrefixCache
from tests.bench.rome_script import RomeScript
from tests.bench.shapes import load
from tests.bench.sonde_socket import Socket, serving

PEERS = ("plain", "rome", "nnsight", "transformer-lens", "pyvene")


def _plain(model: PreTrainedModel, _: Path) -> list[Entry]:
    return [Entry(PrefixCache(model), "hand")]


def _rome(model: PreTrainedModel, _: Path) -> list[Entry]:
    return [Entry(RomeScript(model), "script", loop=True)]


def _nnsight(model: PreTrainedModel, _: Path) -> list[Entry]:
    from tests.bench.nnsight_contenders import Loop, Skipping

    return [Entry(Skipping(model), "library"), Entry(Loop(model), "library", loop=True)]


def _transformer_lens(model: PreTrainedModel, directory: Path) -> list[Entry]:
    from tests.bench.transformer_lens_contenders import Loop

    return [Entry(Loop(model, directory), "library", loop=True)]


def _pyvene(model: PreTrainedModel, _: Path) -> list[Entry]:
    from tests.bench.pyvene_contenders import Loop

    return [Entry(Loop(model), "library", loop=True)]


_MAKERS: dict[str, Callable[[PreTrainedModel, Path], list[Entry]]] = {
    "plain": _plain,
    "rome": _rome,
    "nnsight": _nnsight,
    "transformer-lens": _transformer_lens,
    "pyvene": _pyvene,
}


@contextmanager
def taking_part(
    directory: Path, peers: Sequence[str], serve: Callable[[Path], AbstractContextManager[str]] = serving
) -> Iterator[list[Entry]]:
    """Sonde over the socket and in one process, and these peers, each with a model of its own, of the same weights.

    Sonde answers requests one after the other from a second server, whose cache the first one's have not filled.
    `serve` starts a server of the model's directory and gives its address.
    """
    with ExitStack() as stack:
        entries = []
        for name, at_once in (("Sonde, socket", True), ("Sonde, one request after the other", False)):
            socket = Socket(stack.enter_context(serve(directory)), name, at_once=at_once)
            stack.callback(socket.close)
            entries.append(Entry(socket, "sonde" if at_once else "serial"))
        in_process = Elsewhere(directory)
        stack.callback(in_process.close)
        entries.insert(1, Entry(in_process, "sonde"))
        for peer in peers:
            # Some libraries change the model that they are given.
            entries += _MAKERS[peer](load(directory), directory)
        yield entries
