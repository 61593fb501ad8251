"""Circuits: lists of edges or nodes, and how many of them each run keeps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sonde.v1 import inspection_pb2 as pb

from ..questions.circuits import Circuits
from ..questions.graph import READERS, Graph, Node, precedes
from ..questions.places import Component, Sized
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, Reader
from .images import alike
from .tensors import decode_integers

Numbers = NDArray[np.int64]
_SENDERS = (Component.TOKEN_EMBEDDING, Component.HEAD_OUT, Component.MLP_OUT)
_MOST_SIZES = 1 << 16


def read_circuits(
    message: pb.Circuits, path: str, reader: Reader, prompt: Prompt | None, sources: Sequence[Prompt | None]
) -> Circuits | None:
    """The plan; None where it is faulty."""
    before = len(reader.problems.violations)
    nodes = not message.HasField("receivers")
    ends = reader.once((path, "edges"), lambda: read_ends(message, path, reader, nodes=nodes))
    sizes = _read_sizes(message.sizes, f"{path}.sizes", reader, None if ends is None else len(ends[0]), nodes=nodes)
    patched: tuple[int, ...] = ()
    if message.HasField("patch"):
        patched = _read_patch(message.patch, f"{path}.patch", reader, prompt, sources)
    if ends is None or len(reader.problems.violations) > before:
        return None
    return Circuits(ends[0], ends[1], sizes, patched)


def read_ends(
    message: pb.Circuits | pb.CircuitDiscovery, path: str, reader: Reader, *, nodes: bool = False
) -> tuple[Numbers, Numbers | None] | None:
    """The numbers of the senders and receivers that a message lists; with `nodes` of senders alone."""
    model = reader.model
    senders = _read_nodes(message.senders, f"{path}.senders", reader)
    receivers = None if nodes else _read_nodes(message.receivers, f"{path}.receivers", reader)
    if senders is None or (receivers is None and not nodes):
        return None
    if receivers is not None and len(senders) != len(receivers):
        reader.problems.add(
            f"{path}.receivers", f"expected a receiver for each of {len(senders)} senders, got {len(receivers)}"
        )
        return None
    what = "node" if nodes else "edge"
    writing = _numbers(senders, f"{path}.senders", reader, what, _SENDERS)
    reading = None if receivers is None else _numbers(receivers, f"{path}.receivers", reader, what, READERS)
    if writing is None or (reading is None and receivers is not None):
        return None
    if reading is not None and receivers is not None and not _in_order(senders, receivers, path, reader):
        return None
    each = writing if reading is None else reading * Graph(model).senders + writing
    _, firsts = np.unique(each, return_index=True)
    if len(firsts) < len(each):
        twice = int(np.setdiff1d(np.arange(len(each)), firsts)[0])
        reader.problems.add(f"{path}.senders", f"expected each {what} once, got {what} {twice} a second time")
        return None
    return writing, reading


def _read_nodes(message: pb.Tensor, path: str, reader: Reader) -> Numbers | None:
    """Components, layers and heads: [n, 3]."""
    values = decode_integers(message, path, reader)
    if values is None:
        return None
    if values.ndim != 2 or values.shape[1] != 3:
        shape = " x ".join(map(str, values.shape))
        reader.problems.add(f"{path}.shape", f"expected n x 3 (component, layer, head), got {shape or 'a number'}")
        return None
    return values.astype(np.int64)


def _numbers(
    nodes: Numbers, path: str, reader: Reader, what: str, components: Sequence[Component] | frozenset[Component]
) -> Numbers | None:
    """The numbers of nodes; notes the first that the model does not have."""
    graph = Graph(reader.model)
    known: dict[tuple[int, int, int], int] = {}
    for row in np.unique(nodes, axis=0):
        component, layer, head = (int(value) for value in row)
        fault = _fault(component, layer, head, reader.model, components)
        if fault:
            number = int(np.nonzero((nodes == row).all(axis=1))[0][0])
            reader.problems.add(path, f"{what} {number}: {fault}")
            return None
        node = Node(Component(component), layer, head)
        sends = components is _SENDERS
        known[component, layer, head] = graph.sender_number(node) if sends else graph.receiver_number(node)
    return np.array([known[int(a), int(b), int(c)] for a, b, c in nodes], np.int64)


def _fault(
    component: int, layer: int, head: int, model: Sized, components: Sequence[Component] | frozenset[Component]
) -> str:
    """What is wrong with a node; empty where nothing is."""
    if component not in tuple(components):
        names = ", ".join(one.name for one in sorted(components))
        known = Component(component).name if component in tuple(Component) else f"component {component}"
        return f"expected one of {names}, got {known}"
    of = Component(component)
    layers = 1 if of in (Component.TOKEN_EMBEDDING, Component.LOGITS) else model.layers
    if not 0 <= layer < layers:
        return f"expected {of.name} of a layer from 0 to {layers - 1}, got {layer}"
    whole = of in (Component.TOKEN_EMBEDDING, Component.LOGITS, Component.MLP_OUT)
    heads = 1 if whole else model.units(of)
    if not 0 <= head < heads:
        return f"expected {of.name} with a head from 0 to {heads - 1}, got {head}"
    return ""


def _in_order(senders: Numbers, receivers: Numbers, path: str, reader: Reader) -> bool:
    """Whether each receiver reads after its sender; notes the first that does not."""
    pairs = np.unique(np.concatenate([senders[:, :2], receivers[:, :2]], axis=1), axis=0)
    for row in pairs:
        sender, receiver = (Component(int(row[0])), int(row[1])), (Component(int(row[2])), int(row[3]))
        if not precedes(sender, receiver, reader.model):
            same = (senders[:, :2] == row[:2]).all(axis=1) & (receivers[:, :2] == row[2:]).all(axis=1)
            number = int(np.nonzero(same)[0][0])
            reader.problems.add(
                f"{path}.senders",
                f"edge {number}: expected a sender that writes before its receiver reads, got {sender[0].name} of "
                f"layer {sender[1]} and {receiver[0].name} of layer {receiver[1]}",
            )
            return False
    return True


def _read_sizes(values: Sequence[int], path: str, reader: Reader, count: int | None, *, nodes: bool) -> tuple[int, ...]:
    if not values:
        reader.problems.add(path, "expected at least one size, got none")
    if not reader.listed(len(values), _MOST_SIZES, path, "sizes") or not reader.runs(len(values), path):
        return ()
    what = "nodes" if nodes else "edges"
    for i, value in enumerate(values):
        if value < 0 or (count is not None and value > count):
            reader.problems.add(f"{path}[{i}]", f"expected 0 to {count} {what}, got {value}")
            break
    return tuple(values)


def _read_patch(
    message: pb.Patch, path: str, reader: Reader, prompt: Prompt | None, sources: Sequence[Prompt | None]
) -> tuple[int, ...]:
    if message.source_positions or message.named_source_positions:
        reader.problems.add(f"{path}.source_positions", "expected none, because circuits are of all positions")
    if message.HasField("source_layer"):
        reader.problems.add(f"{path}.source_layer", "expected none, because circuits are of all layers")
    if not message.sources:
        reader.problems.add(f"{path}.sources", "expected at least one index into the sources of the request, got none")
    if not reader.listed(len(message.sources), MOST_LISTED, f"{path}.sources", "sources"):
        return ()
    found: list[int] = []
    for i, value in enumerate(message.sources):
        index = reader.index(value, len(sources), f"{path}.sources[{i}]", "source")
        if index is None:
            continue
        found.append(index)
        source = sources[index]
        if source is not None and prompt is not None:
            if len(source.tokens) != len(prompt.tokens):
                reader.problems.add(
                    f"{path}.sources[{i}]",
                    f"expected a source as long as the prompt, which has {len(prompt.tokens)} tokens, got "
                    f"{len(source.tokens)} in source {index}",
                )
            else:
                alike(source, prompt, f"{path}.sources[{i}]", reader)
    return tuple(found)
