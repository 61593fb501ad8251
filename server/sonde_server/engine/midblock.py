"""Runs that first differ from their base partway through a block share the computation up to that point.

In its first block, a run that changes or reads nothing before a head's output, or a neuron, is equal to its base until
there. So the block is computed once up to there: for the base, over its kept keys and values, at the positions that any
of the runs needs. Each run resumes from those values. A run that sets one neuron to zero then computes only the second
half of the MLP.

The values are kept with the base's state if only one base takes part, so that later questions about the same block
resume at once. They are found by the exact positions and components that they were computed for. So the same question
has the same bits, whatever was asked before it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.costs import MIDWAY_KEPT
from ..questions.extents import Extent, first_block
from ..questions.images import sight_of
from ..questions.places import AFTER_ATTENTION, Component
from .attention import Block, attend
from .layout import Layout, Row, Segment
from .runs import Midway, State
from .visits import Visits


def finish_block(
    decoder: Decoder,
    visits: Visits,
    layout: Layout,
    layer: int,
    at: Component,
    stream: Tensor,
    value: Tensor,
    reads: Callable[[Tensor], Tensor] = lambda stream: stream,
) -> Tensor:
    """The stream [N, D] that leaves a block, from its `value` of one of `AFTER_ATTENTION`, which is edited first.

    `stream` is what enters the block; for NEURON and MLP_OUT it is the stream between attention and the MLP. `reads`:
    from the stream that the MLP has before it to what it reads.
    """

    def visit(packed: Tensor, component: Component) -> Tensor:
        return visits.visit(packed, layout, component, layer)

    start = AFTER_ATTENTION.index(at)
    middle = stream
    if start <= 0:
        value = decoder.attention_output(layer, visit(value, Component.HEAD_OUT))
    if start <= 1:
        value = stream + visit(value, Component.ATTENTION_OUT)
    if start <= 2:
        middle = visit(value, Component.RESIDUAL_MID)
        visited = (Component.NEURON, layer) in visits
        value = decoder.mlp_output(
            layer,
            reads(stream if decoder.parallel else middle),
            (lambda neurons: visit(neurons, Component.NEURON)) if visited else None,
        )
    elif at is Component.NEURON:
        value = decoder.neurons_output(layer, visit(value, Component.NEURON))
    return middle + visit(value, Component.MLP_OUT)


def resuming(rows: Iterable[Row], layers: int) -> dict[int, list[Row]]:
    """The rows that resume partway through their first block, by that block."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if first_touched(row, layers) is not None:
            found[row.extent.start].append(row)
    return found


def first_touched(row: Row, layers: int) -> Component | None:
    """The first component that a row touches in its first block. None: it lies before AFTER_ATTENTION.

    None also for rows that need the whole block, because something of it is kept.
    """
    if row.prefix is None or row.state is not None or row.slot is not None or not row.positions:
        return None
    if row.detour is not None:
        return None
    places = [place for place in row.places if place.positions]
    first = {place.component for place in places if first_block(place, layers) == row.extent.start}
    return min(first, key=AFTER_ATTENTION.index) if first and first <= set(AFTER_ATTENTION) else None


def resume(decoder: Decoder, visits: Visits, layer: int, rows: Sequence[Row]) -> tuple[Layout, Tensor]:
    """Takes rows that resume partway through a block to its end: the stream [N, D] that leaves it, and its layout."""
    spans: dict[Row, Sequence[int]] = {
        row: row.extent.last if row.extent.stop == layer + 1 else row.positions for row in rows
    }
    by_component: dict[Component, list[Row]] = defaultdict(list)
    for row in rows:
        if (at := first_touched(row, decoder.layers)) is not None:
            by_component[at].append(row)
    shared = _Shared(decoder, layer, rows, spans, frozenset(by_component))
    streams: dict[Row, Tensor] = {}
    for at, some in by_component.items():
        layout = Layout(some, spans)
        where = shared.index(layout)
        in_mlp = at in (Component.NEURON, Component.MLP_OUT)
        stream = shared.values[Component.RESIDUAL_MID] if in_mlp else shared.stream
        left = finish_block(decoder, visits, layout, layer, at, stream[where], shared.values[at][where])
        streams.update((row, left[layout.slice(row)]) for row in some)
    layout = Layout(rows, spans)
    return layout, torch.cat([streams[row] for row in layout.rows])


class _Shared:
    """The part of a block that runs share: the `wanted` values of their bases, at the positions that the runs need.

    `stream` [N, D] enters the block; `values` are [N, ...].
    """

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        rows: Sequence[Row],
        spans: Mapping[Row, Sequence[int]],
        wanted: frozenset[Component],
    ) -> None:
        self._layer = layer
        positions: dict[State, set[int]] = defaultdict(set)
        for row in rows:
            assert row.prefix is not None
            positions[row.prefix].update(spans[row])
        self._bases = {state: self._base(state, sorted(some)) for state, some in positions.items()}
        self._layout = Layout(self._bases.values(), {base: base.extent.last for base in self._bases.values()})
        self.stream = torch.cat(
            [base.prefix.residual[layer][list(base.extent.last)] for base in self._layout.rows if base.prefix]
        )
        key = Midway(layer, self._layout.rows[0].extent.last, wanted)
        only = next(iter(positions)) if len(positions) == 1 else None
        kept = None if only is None else only.midway.get(key)
        self.values = self._compute(decoder, wanted) if kept is None else kept
        if only is not None and kept is None:
            keep(only, key, self.values)

    def _base(self, state: State, positions: list[int]) -> Row:
        end = sight_of(state.image).horizon(positions[-1]) + 1
        extent = Extent(self._layer, self._layer + 1, positions[0], end, tuple(positions))
        return Row(state.tokens, state, extent)

    def index(self, layout: Layout) -> Tensor:
        """Where the values of these rows lie, [N]."""
        index = [
            self._layout.index(self._bases[row.prefix], position)
            for row in layout.rows
            if row.prefix is not None
            for position in layout.spans[row]
        ]
        return torch.tensor(index, device=self.stream.device)

    def _mixed(self, decoder: Decoder) -> Tensor:
        """The heads' mixes of values, [N, H, d]."""
        layer, layout = self._layer, self._layout
        rotation = decoder.rotation(self.stream, layout.turns(self.stream.device), layout.lengths)
        query, _, _ = decoder.project(layer, self.stream, rotation)
        block = Block(layer, decoder.attention_settings(layer), Visits(()))
        parts = []
        for base in layout.rows:
            assert base.prefix is not None
            end, own = base.extent.end, layout.slice(base)
            segment = Segment(
                own.start, own.start, 0, end, range(end), base.extent.last, (None,), 1, (base,), base.sight
            )
            keys, values = base.prefix.keys[layer][None, :end], base.prefix.values[layer][None, :end]
            parts.append(attend(block, segment, query[own], keys, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _compute(self, decoder: Decoder, wanted: frozenset[Component]) -> dict[Component, Tensor]:
        """The wanted values, and the stream between attention and the MLP if any of them lies in the MLP."""
        found = {Component.HEAD_OUT: self._mixed(decoder)}
        if wanted - {Component.HEAD_OUT}:
            found[Component.ATTENTION_OUT] = decoder.attention_output(self._layer, found[Component.HEAD_OUT])
            middle = found[Component.RESIDUAL_MID] = self.stream + found[Component.ATTENTION_OUT]
            read = self.stream if decoder.parallel else middle
            if Component.NEURON in wanted:
                found[Component.NEURON] = decoder.neurons_of(self._layer, read)
                if Component.MLP_OUT in wanted:
                    found[Component.MLP_OUT] = decoder.neurons_output(self._layer, found[Component.NEURON])
            elif Component.MLP_OUT in wanted:
                found[Component.MLP_OUT] = decoder.mlp_output(self._layer, read)
        middle_too = {Component.RESIDUAL_MID} if wanted & {Component.NEURON, Component.MLP_OUT} else set()
        return {component: found[component] for component in wanted | middle_too}


def keep(state: State, key: Midway, values: dict[Component, Tensor]) -> None:
    """Keeps values with a state. The oldest are dropped until they take no more than their share of it."""
    limit = MIDWAY_KEPT * (state.bytes - state.midway_bytes)
    state.midway[key] = values
    while state.midway and state.midway_bytes > limit:
        del state.midway[next(iter(state.midway))]
