"""How many values each number of a reduction is over: a part of the answer with counts in place of its numbers."""

import math
from collections.abc import Iterable
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from sonde._ask.names import COMPONENT_AXES, COMPONENT_NAMES
from sonde._wire.tensors import from_tensor, to_tensor
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

_Response = TypeVar("_Response", pb.TraceResponse, pb.InterveneResponse)
_GRID: Final = ("probabilities", "deviations", "logits")
_LAYERS: Final = ("log_probabilities", "probabilities", "logits", "ranks", "kl_divergences", "gradient_norms")
_READINGS: Final = ("log_probabilities", "probabilities", "logits", "kl_divergences", "edit_norms")


def counted(message: _Response, sites: Iterable[pb.Site]) -> _Response:
    """The message with the count of values in place of each number.

    Args:
        message: part of the answer about a reduction.
        sites: the sites whose activations are read.

    Raises:
        ProtocolError: if there are not as many counts as rows.
    """
    made = type(message)()
    made.CopyFrom(message)
    count = message.reduction.count
    for name in ("log_probabilities", "logits", "probabilities"):
        clean = made.context.clean
        if made.HasField("context"):
            getattr(clean, name)[:] = [count] * len(getattr(clean, name))
    if isinstance(made, pb.TraceResponse):
        _count_methods(made, count)
    elif made.HasField("readings"):
        _fill(made.readings, _READINGS, [], count)
    components = [site.component for site in sites]
    for part in made.activations:
        _count_activations(part, components, count)
    return made


def _count_methods(made: pb.TraceResponse, count: int) -> None:
    if made.HasField("layers"):
        _fill(made.layers, _LAYERS, [], made.layers.row_count or count)
    if made.HasField("corruption"):
        for name in _GRID:
            numbers = getattr(made.corruption, name)
            numbers[:] = [count] * len(numbers)
        made.corruption.noise_deviation = count
    for grid in made.grids:
        _fill(grid, _GRID, grid.counts, count)
    for part in made.attributions:
        _fill(part, ("estimates",), part.counts, count, axis=1)
    for effect in made.verified:
        for numbers in (effect.estimated, effect.measured):
            numbers[:] = [count] * len(numbers)
    for found in made.discovered:
        _fill(found, ("growths",), [], count)
        found.loss = count
    for edges in made.edges:
        _fill(edges, ("estimates",), [], count)


def unspread(message: pb.TraceResponse) -> pb.TraceResponse:
    """The edges of a message that all cases have together, whose numbers have no deviation: with 0 in their place."""
    made = pb.TraceResponse(discovered=message.discovered)
    for found in made.discovered:
        _fill(found, ("growths",), [], 0)
        found.loss = 0.0
    return made


def _fill(
    part: pb.RestorationGrid
    | pb.Attributions
    | pb.EdgeAttributions
    | pb.DiscoveredEdges
    | pb.LayerReadings
    | pb.Readings,
    names: Iterable[str],
    counts: Iterable[int],
    count: int,
    *,
    axis: int = 0,
) -> None:
    """Write counts into the tensors of these names: one for each entry of an axis, or `count` for all."""
    by_row = list(counts)
    for name in names:
        if not part.HasField(name):  # type: ignore[arg-type]
            continue
        tensor = getattr(part, name)
        numbers: npt.NDArray[np.float32] = np.full(tuple(tensor.shape), count, np.float32)
        if by_row:
            if tuple(tensor.shape[axis : axis + 1]) != (len(by_row),):
                raise ProtocolError(f"the answer has {len(by_row)} counts for {name} of shape {list(tensor.shape)}")
            numbers[:] = np.reshape(by_row, [-1 if i == axis else 1 for i in range(numbers.ndim)])
        tensor.CopyFrom(to_tensor(numbers, name))


def _count_activations(part: pb.ActivationSlice, components: list[pb.Component.ValueType], count: int) -> None:
    number = from_tensor(part.values).size
    flat = np.full(number, count, np.float32)
    if part.counts:
        name = COMPONENT_NAMES.get(components[part.site]) if 0 <= part.site < len(components) else None
        axis = 1 if name is not None and COMPONENT_AXES[name][0] == "head" else 0
        if tuple(part.shape[axis : axis + 1]) != (len(part.counts),):
            raise ProtocolError(f"the answer has {len(part.counts)} counts for rows of shape {list(part.shape)}")
        inner = math.prod(part.shape[axis + 1 :])
        rows = np.arange(part.offset, part.offset + number) // max(inner, 1) % len(part.counts)
        flat = np.array(part.counts, np.float32)[rows]
    part.values.CopyFrom(to_tensor(flat, "counts"))
