"""Runs that join inside a block: what they have in common with their base there is computed once for all of them.

A run that touches its first block only behind attention is as its base up to what it touches first: a head's output,
a neuron. That far, the block is computed for the base alone, over its kept keys and values, at the positions that any
of the runs goes on from. Each run goes on from there: one whose neuron is set to zero computes the MLP's second half.

What was computed for a lone base is kept with its state, so that who asks about the same block again goes on from it at
once. It is found by the very positions and components that it was computed for: the same question has the same bits,
whatever was asked before it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.costs import INSIDE_KEPT
from ..questions.extents import Extent, first_block
from ..questions.places import AFTER_ATTENTION, Component
from .attention import Block, attend
from .layout import Layout, Row, Segment
from .runs import State
from .visits import Visits


def go_on(
    decoder: Decoder, visits: Visits, layout: Layout, layer: int, at: Component, stream: Tensor, value: Tensor
) -> Tensor:
    """The stream [N, D] that leaves a block, from its `value` of one of `AFTER_ATTENTION`, which is edited first.

    `stream` is what enters the block, but for NEURON and MLP_OUT the stream between attention and the MLP.
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
        watched = (Component.NEURON, layer) in visits
        value = decoder.mlp_output(
            layer,
            stream if decoder.parallel else middle,
            (lambda neurons: visit(neurons, Component.NEURON)) if watched else None,
        )
    elif at is Component.NEURON:
        value = decoder.neurons_output(layer, visit(value, Component.NEURON))
    return middle + visit(value, Component.MLP_OUT)


def inside(rows: Iterable[Row], layers: int) -> dict[int, list[Row]]:
    """By their first block: the rows that join inside it."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if touched_first(row, layers) is not None:
            found[row.extent.start].append(row)
    return found


def touched_first(row: Row, layers: int) -> Component | None:
    """What a row touches first in its first block, if that lies behind attention and the row keeps nothing of it."""
    if row.prefix is None or row.state is not None or row.slot is not None or not row.positions:
        return None
    places = [edits[0] for edits in row.edits.values()] + [one for one in row.captures if one.positions]
    first = {place.component for place in places if first_block(place, layers) == row.extent.start}
    return min(first, key=AFTER_ATTENTION.index) if first and first <= set(AFTER_ATTENTION) else None


def join(decoder: Decoder, visits: Visits, layer: int, rows: Sequence[Row]) -> tuple[Layout, Tensor]:
    """Takes rows that join inside a block through it: the stream [N, D] that leaves it, and how it lies."""
    spans: dict[int, Sequence[int]] = {
        id(row): row.extent.last if row.extent.stop == layer + 1 else row.positions for row in rows
    }
    by_place: dict[Component, list[Row]] = defaultdict(list)
    for row in rows:
        if (at := touched_first(row, decoder.layers)) is not None:
            by_place[at].append(row)
    common = _Common(decoder, layer, rows, spans, frozenset(by_place))
    streams: dict[int, Tensor] = {}
    for at, some in by_place.items():
        layout = Layout(some, spans)
        where = common.places(layout)
        second = at in (Component.NEURON, Component.MLP_OUT)
        stream = common.values[Component.RESIDUAL_MID] if second else common.stream
        left = go_on(decoder, visits, layout, layer, at, stream[where], common.values[at][where])
        streams.update((id(row), left[layout.slice(row)]) for row in some)
    layout = Layout(rows, spans)
    return layout, torch.cat([streams[id(row)] for row in layout.rows])


class _Common:
    """A block of some bases, at the positions that runs over them go on from, as far as what is `wanted` of it."""

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        rows: Sequence[Row],
        spans: dict[int, Sequence[int]],
        wanted: frozenset[Component],
    ) -> None:
        self._layer = layer
        states: dict[int, State] = {}
        positions: dict[int, set[int]] = defaultdict(set)
        for row in rows:
            assert row.prefix is not None
            states[id(row.prefix)] = row.prefix
            positions[id(row.prefix)].update(spans[id(row)])
        self._bases = {key: self._base(states[key], sorted(some)) for key, some in positions.items()}
        self._layout = Layout(self._bases.values(), {id(base): base.extent.last for base in self._bases.values()})
        streams = [states[id(base.prefix)].residual[layer][list(base.extent.last)] for base in self._layout.rows]
        self.stream = torch.cat(streams)
        self.values: dict[Component, Tensor] = {}
        lone = next(iter(states.values())) if len(states) == 1 else None
        place = layer, self._layout.rows[0].extent.last, wanted
        if lone is not None and place in lone.inside:
            self.values = lone.inside[place]
            return
        self._compute(decoder, wanted)
        if lone is not None:
            keep(lone, place, self.values)

    def _base(self, state: State, positions: list[int]) -> Row:
        extent = Extent(self._layer, self._layer + 1, positions[0], positions[-1] + 1, tuple(positions))
        return Row(state.tokens, state, extent, {})

    def places(self, layout: Layout) -> Tensor:
        """Where the tokens of rows lie in what is common to them."""
        index = [
            self._layout.index(self._bases[id(row.prefix)], position)
            for row in layout.rows
            for position in layout.spans[id(row)]
        ]
        return torch.tensor(index, device=self.stream.device)

    def _mixed(self, decoder: Decoder) -> Tensor:
        layer, layout = self._layer, self._layout
        rotation = decoder.rotation(self.stream, layout.positions(self.stream.device), layout.lengths)
        query, _, _ = decoder.project(layer, self.stream, rotation)
        block = Block(layer, decoder.attention_settings(layer), Visits(()))
        parts = []
        for base in layout.rows:
            assert base.prefix is not None
            end, own = base.extent.end, layout.slice(base)
            segment = Segment(own.start, own.start, 0, end, range(end), base.extent.last, (None,), 1, (base,))
            keys, values = base.prefix.keys[layer][None, :end], base.prefix.values[layer][None, :end]
            parts.append(attend(block, segment, query[own], keys, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _compute(self, decoder: Decoder, wanted: frozenset[Component]) -> None:
        """What is wanted, and for the MLP's parts the stream between attention and it."""
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
        behind = {Component.RESIDUAL_MID} if wanted & {Component.NEURON, Component.MLP_OUT} else set()
        self.values = {component: found[component] for component in wanted | behind}


def keep(state: State, place: object, values: dict[Component, Tensor]) -> None:
    """Keeps values inside a block with a state, and forgets the oldest while they take more than their share of it."""
    limit = INSIDE_KEPT * (state.bytes - state.inside_bytes)
    state.inside[place] = values
    while state.inside and state.inside_bytes > limit:
        del state.inside[next(iter(state.inside))]
