"""Changes that go along paths: each receiver of a row reads the stream with the columns added that it sees.

A row's detour (runs.Detour) has columns, each a stream of its own [positions, D]. What a sender would write, less what
it writes in the row, is added to its column. A receiver reads the row's stream plus the columns that it sees, before
its own norm. A node that a column goes through reads what it reads in the row, plus the column; what it would then
write, less what it writes in the row, is added to the column.

Rows that differ only in who sees what form a fleet (fleets.py): what they see is one product for each block.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.graph import READ_BY_HEADS, read, written
from ..questions.places import Component
from .attention import Block, attend
from .fleets import Fleet, Mix, View, fleets_of, index_of
from .layout import Layout, Row, turns_of
from .runs import Through
from .senders import Senders
from .visits import Place, Visits

Projected = tuple[Tensor, Tensor, Tensor]
# Rows whose column goes through an MLP, what it reads in them, and at which positions.
Passing = tuple[Fleet, Through, Tensor, Sequence[int]]


class Detours:
    """Those of all rows of a batch. `positions`: how many have gone through nodes, which counts as work."""

    def __init__(self, decoder: Decoder, rows: Iterable[Row]) -> None:
        self.decoder = decoder
        self.positions = 0
        self._senders = Senders(decoder)
        self._fleets = fleets_of(rows)
        self._of = {row: fleet for fleet in self._fleets for row in fleet.rows}
        self._visited = {place for fleet in self._fleets for place in fleet.visited}
        self._readers = {place for fleet in self._fleets for place in fleet.views}
        self._passed = {place for fleet in self._fleets for place in fleet.through}

    def __contains__(self, place: Place) -> bool:
        return place in self._visited

    # ------------------------------------------------------------ what is as in the base

    def enter(self, rows: Iterable[Row]) -> None:
        """Fills the columns of rows that start here with what is sent, and passes nodes, below their first block."""
        fleets = {id(fleet): fleet for row in rows if (fleet := self._of.get(row)) is not None}
        events: dict[tuple[int, bool, Place], list[Fleet]] = defaultdict(list)
        for fleet in fleets.values():
            shape = (len(fleet.rows), fleet.detour.columns, len(fleet.positions), self.decoder.hidden_size)
            fleet.before = None
            fleet.columns = torch.zeros(shape, dtype=self.decoder.dtype, device=self.decoder.device)
            for place in self._below(fleet, fleet.sends):
                events[written(*place), True, place].append(fleet)
            for place in self._below(fleet, fleet.through):
                events[read(*place, self.decoder), False, place].append(fleet)
        for (_, sending, place), some in sorted(events.items(), key=lambda event: event[0][:2]):
            if sending:
                self._senders.send_from_base(place, some)
            else:
                self._pass_in_base(place, some)

    def _below(self, fleet: Fleet, places: Iterable[Place]) -> list[Place]:
        return [place for place in places if fleet.is_below(place, self.decoder.layers)]

    def _pass_in_base(self, place: Place, fleets: list[Fleet]) -> None:
        """Lets columns through an MLP below the rows' first block."""
        passing = []
        # Runs that leave the base as it is have the same reads, which are the same tensor.
        reads: dict[int, Tensor] = {}
        for fleet in fleets:
            for one in fleet.through[place]:
                assert one.stream is not None
                if id(one.stream) not in reads:
                    reads[id(one.stream)] = one.stream.to(self.decoder.device, self.decoder.dtype)[None]
                passing.append((fleet, one, reads[id(one.stream)], one.positions))
        self._pass(place[1], passing)

    def send(self, packed: Tensor, layout: Layout, place: Place) -> None:
        """Adds what the senders at a place would write, less what they write, from their values `packed` [N, ...]."""
        if place in self._visited:
            for fleet in self._present(layout):
                if place in fleet.visited:
                    self._senders.send(fleet, packed, layout, place)

    # ------------------------------------------------------------ receivers

    def heads(self, layer: int, layout: Layout, stream: Tensor, projected: Projected) -> Projected:
        """Queries, keys and values [N, heads, d], in which receivers have what they make of their own reads."""
        self._hold(layer)
        if all((component, layer) not in self._readers for component in READ_BY_HEADS):
            return projected
        for fleet in self._present(layout):
            index = index_of(fleet, layout, fleet.positions, stream.device)
            self._project(fleet, layer, stream[index], index, projected)
        return projected

    def _hold(self, layer: int) -> None:
        """Where MLPs run beside attention, they read the columns as they are before attention writes."""
        place = Component.MLP_OUT, layer
        for fleet in self._fleets:
            reads = self.decoder.parallel and (place in fleet.views or place in fleet.through)
            fleet.before = fleet.columns.clone() if reads and fleet.columns.numel() else None

    def _project(
        self, fleet: Fleet, layer: int, stream: Tensor, index: Tensor, into: Projected, extra: int | None = None
    ) -> None:
        """Writes what receivers of a block make of their reads into queries, keys and values, at `index` [rows, n].

        `extra`: a column that every head sees too.
        """
        views = [
            (number, view)
            for number, name in enumerate(READ_BY_HEADS)
            for view in fleet.seen_by(name, layer, None if extra is None else self.decoder.units(name))
        ]
        alike: dict[bytes, list[tuple[int, View]]] = defaultdict(list)
        for number, view in views:
            alike[view.key].append((number, view))
        if not alike:
            return
        seen = fleet.added([one[0][1] for one in alike.values()], fleet.positions, extra=extra)
        reads = (stream[:, None] + seen.to(stream.device)).transpose(0, 1)  # [views, rows, n, D]
        streams: list[list[int | None]] = [[None] * self.decoder.units(name) for name in READ_BY_HEADS]
        for order, group in enumerate(alike.values()):
            for number, view in group:
                for unit in view.units:
                    streams[number][unit] = order
        rows, n = index.shape
        turns = turns_of(((row.image, fleet.positions) for row in fleet.rows), stream.device)
        lengths = [max(len(row.tokens), row.extent.end) for row in fleet.rows for _ in range(n)]
        rotation = self.decoder.rotation(reads, turns, lambda device: torch.tensor(lengths, device=device))
        queries, keys, values = streams
        found = self.decoder.project_reads(layer, reads.flatten(1, 2), (queries, keys, values), rotation)
        for number, of in enumerate(streams):
            if units := [unit for unit, order in enumerate(of) if order is not None]:
                there = torch.tensor(units, device=stream.device)
                into[number][index[:, :, None], there] = found[number][:, there].unflatten(0, (rows, n))

    def seen(self, packed: Tensor, layout: Layout, component: Component, layer: int) -> Tensor:
        """The stream [N, D] as the MLP of a block, or the final norm (LOGITS), reads it; a copy if any row differs."""
        place = component, layer
        if place not in self._readers:
            return packed
        seen = packed.clone()
        for fleet in self._present(layout, leaving=component is not Component.LOGITS):
            for view in fleet.views.get(place, ()):
                there = {position for part in view.positions for position in part}
                if positions := [p for p in layout.spans[fleet.rows[0]] if p in there]:
                    index = index_of(fleet, layout, positions, packed.device)
                    early = component is Component.MLP_OUT
                    seen[index] += fleet.added([view], positions, early=early)[:, 0].to(seen.device)
        return seen

    # ------------------------------------------------------------ nodes that columns go through

    def through_heads(self, layer: int, layout: Layout, stream: Tensor, projected: Projected) -> None:
        """Computes the mixes of heads that columns go through, in a block that the rows compute; `send` adds them."""
        place = Component.HEAD_OUT, layer
        if place not in self._passed:
            return
        for fleet in self._present(layout):
            index = index_of(fleet, layout, fleet.positions, stream.device)
            own = torch.arange(index.numel(), device=index.device).view(index.shape)
            unchanged = None
            if fleet.through.get(place) and fleet.is_edited_inside(layer):
                unchanged = self._mix(fleet, layer, [part[index].flatten(0, 1) for part in projected])
            for one in fleet.through.get(place, ()):
                self.positions += len(fleet.rows) * len(one.positions)
                query, key, value = (part[index].flatten(0, 1) for part in projected)
                self._project(fleet, layer, stream[index], own, (query, key, value), one.column)
                assert one.units is not None
                fleet.mixes.append(Mix(one.column, one.units, self._mix(fleet, layer, (query, key, value)), unchanged))

    def _mix(self, fleet: Fleet, layer: int, projected: Sequence[Tensor]) -> Tensor:
        """Each head's mix of values [rows, n, H, d] without edits, of queries, keys and values [rows x n, heads, d]."""
        block = Block(layer, self.decoder.attention_settings(layer), Visits(()))
        query, key, value = projected
        parts = []
        alone = Layout(fleet.rows)
        for segment in alone.segments(alone):
            shape = (len(segment.members), len(segment.positions))
            keys, values = (part[segment.cut].unflatten(0, shape) for part in (key, value))
            parts.append(attend(block, segment, query[segment.attending], keys, values))
        mixed: Tensor = torch.cat(parts).unflatten(0, (len(fleet.rows), -1))
        return mixed

    def through_mlp(self, layer: int, layout: Layout, stream: Tensor) -> None:
        """Lets columns through the MLP of a block that the rows compute, from what it reads in them [N, D]."""
        place = Component.MLP_OUT, layer
        if place not in self._passed:
            return
        passing: list[Passing] = []
        for fleet in self._present(layout):
            for one in fleet.through.get(place, ()):
                there = set(one.positions)
                positions = [p for p in layout.spans[fleet.rows[0]] if p in there]
                passing.append((fleet, one, stream[index_of(fleet, layout, positions, stream.device)], positions))
        self._pass(layer, passing)

    def _pass(self, layer: int, passing: Sequence[Passing]) -> None:
        """Adds what an MLP makes of its reads [rows or 1, P, D] and the columns, less what it makes of the reads alone.

        All are computed in one call, because each may be a single position.
        """
        device = self.decoder.devices[layer]
        alone: dict[tuple[int, ...], int] = {}
        parts: list[Tensor] = []
        places = []
        for fleet, one, stream, positions in passing:
            self.positions += len(fleet.rows) * len(one.positions)
            rows, kept = fleet.among(positions)
            if not kept:
                continue
            held = fleet.columns if fleet.before is None else fleet.before
            read = stream[:, rows].to(device)
            key = (id(stream), *rows)
            if key not in alone:
                alone[key] = len(parts)
                parts.append(read)
            parts.append(read + held[:, one.column, kept].to(device))
            places.append((fleet, one.column, kept, alone[key], len(parts) - 1))
        if not parts:
            return
        output = self.decoder.mlp_output(layer, torch.cat([part.flatten(0, 1) for part in parts]))
        made = [
            flat.unflatten(0, part.shape[:2])
            for flat, part in zip(output.split([p.shape[0] * p.shape[1] for p in parts]), parts, strict=True)
        ]
        for fleet, column, kept, before, after in places:
            fleet.let_through(layer, column, kept, made[after] - made[before])

    def _present(self, layout: Layout, *, leaving: bool = True) -> Iterator[Fleet]:
        """The fleets that are in the batch now. Rows that are not have left for good, unless `leaving` is false."""
        for number, fleet in enumerate(self._fleets):
            here = [row in layout.offsets for row in fleet.rows]
            if not any(here):
                continue
            present = fleet if all(here) else fleet.part(here)
            if leaving:
                self._fleets[number] = present
            yield present
