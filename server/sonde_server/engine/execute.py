"""Runs a batch of rows through the blocks. Each row joins the batch at its first block and leaves after its last.

So a block runs once for all rows that need it. A row that starts at a later block takes the stream from its base.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..model.rotary import Rotations
from ..questions.places import Component
from .attention import Block, Masks, attend
from .decoding import copy_below, gather, store
from .detours import Detours
from .ends import Ends
from .layout import Layout, Row, Segment
from .midblock import finish_block, resume, resuming
from .pooling import leaving
from .runs import State
from .visits import Visits


@dataclass(slots=True)
class Work:
    """What was computed. `token_layers` is counted where the blocks compute: positions x blocks."""

    token_layers: int = 0
    batches: int = 0
    rows: int = 0


class Execution:
    """One batch on its way through the blocks.

    `between` is called before each block and between parts of the reading, with the number of blocks that are done. It
    may execute another batch to its end. `visits`: what is done at each place, if not the rows' edits and captures.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: Iterable[Row],
        work: Work,
        between: Callable[[int], None] = lambda done: None,
        visits: Visits | None = None,
    ) -> None:
        self.decoder = decoder
        self.waiting = list(rows)
        self.work = work
        self.between = between
        self.layout = Layout([])
        self.segments: list[Segment] = []
        self.stream = torch.empty(0, decoder.hidden_size, dtype=decoder.dtype, device=decoder.device)
        self.rotation: Rotations | None = None
        self.visits = Visits(self.waiting) if visits is None else visits
        self.resuming = resuming(self.waiting, decoder.layers)
        self.masks: Masks = {}
        self.detours = Detours(decoder, self.waiting) if any(row.detour for row in self.waiting) else None
        self.visits.detours = self.detours

    def run(self) -> None:
        """Computes every row's result. Rows that nobody waits for any more are dropped before the next block."""
        for row in self.waiting:
            row.captured.clear()
            row.squares = torch.zeros(row.receipts, device=self.decoder.device) if row.receipts else None
            if row.state is not None:
                row.state.clear()
        last = max(row.extent.stop for row in self.waiting)
        for depth in range(min(row.extent.start for row in self.waiting), last + 1):
            if depth < last:
                self.between(depth)
            # Not before: the caller may have gone away while another batch was executed.
            if not self._abandon():
                return
            self._arrive(depth)
            if depth < last:
                self._leave(depth)
                self._block(depth)
        Ends(self.decoder, self.visits, self.detours, self.layout, self.stream).read(self.between)
        if self.detours is not None:
            self.work.token_layers += self.detours.positions
        for row in self.waiting:
            row.result.captures = [leaving(row.captured[number], one) for number, one in enumerate(row.captures)]
            if row.squares is not None:
                row.result.edit_norms = row.squares.sqrt().cpu()

    def _abandon(self) -> bool:
        """Drops the rows that nobody waits for. Returns whether any are left."""
        answers = {asked: asked() for asked in {row.abandoned for row in self.waiting}}
        if any(answers.values()):
            for row in self.waiting:
                row.dropped = answers[row.abandoned]
            self.waiting = [row for row in self.waiting if not row.dropped]
            self._repack([row for row in self.layout.rows if not row.dropped], {})
        return bool(self.waiting)

    def _arrive(self, depth: int) -> None:
        """Edits the stream between two blocks, and adds the rows that start here."""
        self.stream = self._between(depth, self.layout, self.decoder.place(self.stream, depth))
        resumed, streams = self._resume(depth)
        starting = self._starting(depth)
        if self.detours is not None:
            self.detours.enter(starting)
        # Rows over the base run of another row of this batch come after it.
        for rows in ([row for row in starting if not row.prefix], [row for row in starting if row.prefix]):
            if rows:
                layout = Layout(rows)
                stream = self._between(depth, layout, self._entering(depth, layout))
                streams.update((row, stream[layout.slice(row)]) for row in rows)
        if streams:
            self._repack([*self.layout.rows, *resumed.rows, *starting], streams, resumed.spans)
            for row in starting:
                copy_below(row)

    def _resume(self, depth: int) -> tuple[Layout, dict[Row, Tensor]]:
        """The rows that resumed partway through the block below, and the stream that each leaves it with."""
        rows = [row for row in self.resuming.pop(depth - 1, ()) if not row.dropped]
        if not rows:
            return Layout([]), {}
        layout, stream = resume(self.decoder, self.visits, depth - 1, rows)
        self.work.token_layers += layout.tokens
        stream = self._between(depth, layout, self.decoder.place(stream, depth))
        return layout, {row: stream[layout.slice(row)] for row in rows}

    def _starting(self, depth: int) -> list[Row]:
        """The rows whose first block this is, except those that resume partway through it."""
        resuming = set(self.resuming.get(depth, ()))
        return [row for row in self.waiting if row.extent.start == depth and row.positions and row not in resuming]

    def _between(self, depth: int, layout: Layout, stream: Tensor) -> Tensor:
        """The stream between two blocks after the rows' edits. Rows with a state keep it."""
        if depth:
            stream = self.visits.visit(stream, layout, Component.RESIDUAL_POST, depth - 1)
        if depth < self.decoder.layers:
            stream = self.visits.visit(stream, layout, Component.RESIDUAL_PRE, depth)
        for row, state in _keeping(layout):
            state.residual.append(_whole(row, lambda past: past.residual[depth], stream[layout.slice(row)]))
        return stream

    def _entering(self, depth: int, layout: Layout) -> Tensor:
        """The stream of rows that start here: that of their bases, or the token embeddings."""
        if depth:
            parts = [row.prefix.residual[depth][row.extent.first : row.extent.end] for row in layout.rows if row.prefix]
            return torch.cat(parts)
        packed = torch.cat(list(self._embeddings(layout.rows)))
        packed = self.visits.visit(packed, layout, Component.TOKEN_EMBEDDING, 0)
        for row, state in _keeping(layout):
            state.embedding = _whole(row, lambda past: past.embedding, packed[layout.slice(row)])
        return self.decoder.place(self.decoder.enter(packed, layout.positions(packed.device)), depth)

    def _leave(self, depth: int) -> None:
        """Removes the rows whose last block was the one below."""
        staying = [row for row in self.layout.rows if row.extent.stop > depth]
        if len(staying) < len(self.layout.rows):
            self._repack(staying, {})

    def _repack(
        self, rows: list[Row], entering: Mapping[Row, Tensor], spans: Mapping[Row, Sequence[int]] | None = None
    ) -> None:
        """Makes these the rows of the batch. The stream of those in `entering` is added, that of the others kept."""
        layout = Layout(rows, {**self.layout.spans, **(spans or {})})
        parts = [self.stream[:0]]
        for row in layout.rows:
            arriving = entering.get(row)
            parts.append(self.stream[self.layout.slice(row)] if arriving is None else arriving)
        self.layout, self.stream = layout, torch.cat(parts)
        self.segments = layout.segments(layout)
        self.rotation = self.decoder.rotation(self.stream, layout.positions(self.stream.device), layout.lengths)

    def _embeddings(self, rows: list[Row]) -> Iterator[Tensor]:
        """The rows' token embeddings: those of their base, or if it has none at these positions, the model's."""
        known = [row.prefix is not None and row.extent.end <= len(row.prefix.tokens) for row in rows]
        new = [row.tokens[-len(row.positions) :] for row, there in zip(rows, known, strict=True) if not there]
        ids = torch.tensor([token for tokens in new for token in tokens], dtype=torch.long, device=self.decoder.device)
        found = iter(self.decoder.embed(ids).split([len(tokens) for tokens in new]) if new else ())
        for row, there in zip(rows, known, strict=True):
            if there and row.prefix is not None:
                yield row.prefix.embedding[row.extent.first : row.extent.end]
            else:
                yield next(found)

    def _block(self, layer: int) -> None:
        if not self.layout.tokens:
            return
        decoder = self.decoder
        query, key, value = decoder.project(layer, self.stream, self.rotation)
        if self.detours is not None:
            query, key, value = self.detours.heads(layer, self.layout, self.stream, (query, key, value))
            self.detours.through_heads(layer, self.layout, self.stream, (query, key, value))
        key = self._visit(key, Component.KEY, layer)
        value = self._visit(value, Component.VALUE, layer)
        for row, state in _keeping(self.layout):
            own = self.layout.slice(row)
            state.keys.append(_whole(row, lambda past: past.keys[layer], key[own]))
            state.values.append(_whole(row, lambda past: past.values[layer], value[own]))
        owned = [self._own(layer, segment, key, value) for segment in self.segments]
        query, segments = self._narrow(layer, query)
        self.work.token_layers += len(query)
        query = self._visit(query, Component.QUERY, layer)
        block = Block(layer, decoder.attention_settings(layer), self.visits, self.masks)
        parts = [
            attend(block, segment, query[segment.attending], *own) for segment, own in zip(segments, owned, strict=True)
        ]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.stream = finish_block(
            decoder,
            self.visits,
            self.layout,
            layer,
            Component.HEAD_OUT,
            self.stream,
            mixed,
            lambda stream: self._mlp_reads(layer, stream),
        )

    def _mlp_reads(self, layer: int, stream: Tensor) -> Tensor:
        """What the MLP of a block reads [N, D], where the stream is this."""
        if self.detours is None:
            return stream
        read = self.detours.seen(stream, self.layout, Component.MLP_OUT, layer)
        self.detours.through_mlp(layer, self.layout, read)
        return read

    def _own(self, layer: int, segment: Segment, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, length, K, d] of a segment's own positions, including those of earlier steps."""
        shape = (len(segment.members), len(segment.positions))
        new = key[segment.cut].unflatten(0, shape), value[segment.cut].unflatten(0, shape)
        if any(row.slot is not None for row in segment.members):
            store(segment, layer, *new)
        return new if len(segment.positions) == segment.length else gather(segment, layer, key)

    def _narrow(self, layer: int, query: Tensor) -> tuple[Tensor, list[Segment]]:
        """In a row's last block, continues only with the positions that are read or changed there or above."""
        full = self.layout
        narrow = full.narrowed(layer)
        if narrow is full:
            return query, self.segments
        picked = full.pick(narrow, query.device)
        self.layout, self.stream = narrow, self.stream[picked]
        return query[picked], full.segments(narrow)

    def _visit(self, packed: Tensor, component: Component, layer: int) -> Tensor:
        return self.visits.visit(packed, self.layout, component, layer)


def _keeping(layout: Layout) -> list[tuple[Row, State]]:
    return [(row, row.state) for row in layout.rows if row.state]


def _whole(row: Row, past: Callable[[State], Tensor], own: Tensor) -> Tensor:
    """A row's values at all positions: those of its base, then its `own`. Always a copy."""
    if row.prefix is None or not row.extent.first:
        return own.clone()
    return torch.cat([past(row.prefix)[: row.extent.first], own])
