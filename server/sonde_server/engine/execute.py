"""Runs a batch of rows through the blocks, each row joining at its first block.

Going up, each block runs once over a growing batch: what starts later waits in its base's residual stream.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..domain import Component
from ..errors import Stopped
from ..model.anatomy import Decoder
from ..model.attention import attention_by
from .attention import SharedPrefixAttention
from .changes import visit
from .layout import Layout, Row
from .readout import by_reading, read
from .runs import State

# Logits of this many bytes are held at once while a batch is read.
UNEMBEDDING_BYTES = 64 << 20


@dataclass(slots=True)
class Work:
    """What was computed, counted by the blocks themselves."""

    token_layers: int = 0
    batches: int = 0


class Execution:
    """One batch on its way up."""

    def __init__(self, decoder: Decoder, rows: list[Row], stopped: Callable[[], bool], work: Work) -> None:
        self.decoder = decoder
        self.waiting = rows
        self.stopped = stopped
        self.work = work
        self.layout = Layout([])
        self.stream = torch.empty(0, decoder.hidden_size, dtype=decoder.dtype, device=decoder.device)
        self.rotation: dict[str, object] = {}
        self.tap: list[Tensor] | None = None

    def run(self) -> None:
        """Computes every row's result. Raises Stopped before the next block when nobody waits any more."""
        for row in self.waiting:
            if row.receipts:
                row.squares = torch.zeros(row.receipts, device=self.decoder.device)
            if row.keep:
                row.state = State(row.tokens, torch.empty(0), [], [], [])
        last = max(row.extent.stop for row in self.waiting)
        for depth in range(min(row.extent.start for row in self.waiting), last + 1):
            if self.stopped():
                raise Stopped("the caller went away")
            self._arrive(depth)
            if depth < last:
                self._leave(depth)
                self._block(depth)
        self._read()
        for row in self.waiting:
            row.result.captures = [row.captured[number].float().cpu() for number in range(len(row.captures))]
            if row.squares is not None:
                row.result.edit_norms = row.squares.sqrt().cpu()

    def _arrive(self, depth: int) -> None:
        """Joins the rows that start here and makes the edits of the stream between two blocks."""
        joining = [row for row in self.waiting if row.extent.start == depth and row.length]
        if joining:
            self._join(depth, joining)
        if depth:
            self.stream = visit(self.stream, self.layout, Component.RESIDUAL_POST, depth - 1)
        if depth < self.decoder.layers:
            self.stream = visit(self.stream, self.layout, Component.RESIDUAL_PRE, depth)
        if self.tap is not None:
            if not self.tap:
                self.stream.requires_grad_()
            self.tap.append(self.stream)
        for row, values in self._kept(self.stream):
            if row.state:
                past = row.prefix.residual[depth][: row.extent.first] if row.prefix else values[:0]
                row.state.residual.append(torch.cat([past, values]))

    def _leave(self, depth: int) -> None:
        """Lets go of the rows that have nothing to do above."""
        staying = [row for row in self.layout.rows if row.extent.stop > depth]
        if len(staying) < len(self.layout.rows):
            self._repack(Layout(staying), {})

    def _join(self, depth: int, joining: list[Row]) -> None:
        entering: dict[int, Tensor] = {}
        if depth == 0:
            first = Layout(joining)
            packed = visit(torch.cat([self._embedding(row) for row in first.rows]), first, Component.TOKEN_EMBEDDING, 0)
            entered = self.decoder.enter(packed, first.positions(packed.device))
            for row in first.rows:
                cut = slice(first.offsets[id(row)], first.offsets[id(row)] + row.length)
                entering[id(row)] = entered[cut]
                if row.state:
                    past = row.prefix.embedding[: row.extent.first] if row.prefix else packed[:0]
                    row.state.embedding = torch.cat([past, packed[cut]])
        else:
            for row in joining:
                assert row.prefix is not None
                entering[id(row)] = row.prefix.residual[depth][row.extent.first : row.extent.end]
        self._repack(Layout([*self.layout.rows, *joining]), entering)

    def _repack(self, layout: Layout, entering: dict[int, Tensor]) -> None:
        parts = [self.stream[:0]]
        for row in layout.rows:
            at = self.layout.offsets.get(id(row))
            parts.append(entering[id(row)] if at is None else self.stream[at : at + row.length])
        self.layout, self.stream = layout, torch.cat(parts)
        self.rotation = self.decoder.rotation(self.stream, layout.positions(self.stream.device))

    def _embedding(self, row: Row) -> Tensor:
        cut = slice(row.extent.first, row.extent.end)
        if row.prefix is not None:
            return row.prefix.embedding[cut]
        return self.decoder.embed(torch.tensor(row.tokens[cut], device=self.decoder.device))

    def _block(self, layer: int) -> None:
        if not self.layout.tokens:
            return
        self.work.token_layers += len(self.stream)
        attention = SharedPrefixAttention(self.layout)
        with attention_by(attention):
            added = self.decoder.attend(layer, self.stream, self.rotation)
        middle = self.stream + visit(added, self.layout, Component.ATTENTION_OUT, layer)
        middle = visit(middle, self.layout, Component.RESIDUAL_MID, layer)
        with ExitStack() as hooks:
            self._watch_neurons(layer, hooks)
            transformed = self.decoder.transform(layer, middle)
        self.stream = middle + visit(transformed, self.layout, Component.MLP_OUT, layer)
        for values, name in zip(attention.kept.get(layer, ()), ("keys", "values"), strict=False):
            for row, own in self._kept(values):
                past = getattr(row.prefix, name)[layer][: row.extent.first] if row.prefix else own[:0]
                getattr(row.state, name).append(torch.cat([past, own]))

    def _watch_neurons(self, layer: int, hooks: ExitStack) -> None:
        """Stands before the down projection, only where a row asks for it."""
        place = (Component.NEURON, layer)
        captured = any((c.component, c.layer) == place for row in self.layout.rows for c in row.captures)
        if not captured and not any(place in row.edits for row in self.layout.rows):
            return

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (visit(inputs[0][0], self.layout, Component.NEURON, layer).unsqueeze(0), *inputs[1:])

        handle = self.decoder.blocks[layer].down_projection.register_forward_pre_hook(before)
        hooks.callback(handle.remove)

    def _kept(self, packed: Tensor) -> Iterable[tuple[Row, Tensor]]:
        for row in self.layout.rows:
            if row.keep:
                offset = self.layout.offsets[id(row)]
                yield row, packed[offset : offset + row.length]

    def _read(self) -> None:
        limit = max(1, UNEMBEDDING_BYTES // (4 * self.decoder.vocabulary_size))
        chunk: list[Row] = []
        size = 0
        for row in self.layout.rows:
            needed = len(_needed(row))
            if chunk and size + needed > limit:
                self._read_rows(chunk)
                chunk, size = [], 0
            if needed:
                chunk.append(row)
                size += needed
        if chunk:
            self._read_rows(chunk)

    def _read_rows(self, rows: list[Row]) -> None:
        picked = Picked(rows)
        where = [self.layout.index(row, position) for row in rows for position in _needed(row)]
        normed = self.decoder.norm(self.stream[torch.tensor(where, device=self.stream.device)])
        normed = visit(normed, picked, Component.FINAL_NORM, 0)
        logits = visit(self.decoder.unembed(normed), picked, Component.LOGITS, 0)
        for alike in by_reading(rows).values():
            reading = alike[0].reading
            assert reading is not None
            index = torch.tensor([picked.index(row, reading.position) for row in alike], device=logits.device)
            for row, result in zip(alike, read(logits[index], reading), strict=True):
                row.result = result


class Picked(Layout):
    """The few positions of each row that go through the final norm and the unembedding."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        places = [(id(row), position) for row in rows for position in _needed(row)]
        self.places = {place: number for number, place in enumerate(places)}

    def index(self, row: Row, position: int) -> int:
        """Where a row's position lies."""
        return self.places[id(row), position]


def _needed(row: Row) -> list[int]:
    final = (Component.FINAL_NORM, Component.LOGITS)
    positions = {
        position for (component, _), edits in row.edits.items() if component in final
        for edit in edits for position in edit.positions
    }  # fmt: skip
    positions.update(p for capture in row.captures if capture.component in final for p in capture.positions)
    if row.reading is not None:
        positions.add(row.reading.position)
    return sorted(positions)
