"""Senders: what they would write to the stream with changed values, less what they write, goes into columns."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.places import Component
from .fleets import Fleet, index_of
from .joint_heads import JointHeads
from .layout import Layout
from .sent import Column, base_values, by_positions, sent, sent_heads, shape_of
from .visits import Place


class _Sent(NamedTuple):
    """Values of the base [1, P, ...], and those that a fleet's columns have instead [1, columns, P, ...]."""

    fleet: Fleet
    numbers: list[int]
    kept: list[int]
    key: object
    old: Tensor
    new: Tensor


class Senders:
    """Fills the columns of fleets (fleets.py) with what is sent."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def send_from_base(self, place: Place, fleets: list[Fleet]) -> None:
        """Adds what is sent at a place to the columns, for all fleets at once, because each may have one send alone."""
        found: list[_Sent] = []
        for fleet in fleets:
            known = fleet.detour.known
            for positions, columns in fleet.groups(place):
                rows, kept = fleet.among(positions)
                numbers, key = [number for number, _ in columns], (place, positions, tuple(kept))
                passed = fleet.has_passed(place, numbers[0])
                if key in known and not passed:
                    fleet.add(numbers, kept, known[key])
                    continue
                old = base_values(columns[0][1], positions).to(self.decoder.device, self.decoder.dtype)[None]
                if passed:
                    self._send_after(fleet, place, columns[0], positions, old)
                    continue
                new = sent(fleet.rows, old, columns, positions)
                if kept:
                    found.append(_Sent(fleet, numbers, kept, key, old[:, rows], new[:, :, rows]))
        if not found:
            return
        positions_of = [one.fleet.first + index for one in found for _ in one.numbers for index in one.kept]
        olds = torch.cat([one.old[:, None].expand(one.new.shape).flatten(0, 2) for one in found])
        moved = self._moved(place, olds, torch.cat([one.new.flatten(0, 2) for one in found]), positions_of)
        sizes = [len(one.numbers) * len(one.kept) for one in found]
        for one, part in zip(found, moved.split(sizes), strict=True):
            sent_here = part.view(1, len(one.numbers), len(one.kept), -1)
            one.fleet.add(one.numbers, one.kept, sent_here)
            self._join(one.fleet, place, one.numbers, one.kept, one.old, one.new, sent_here)
            # Distances and what heads write together are not kept, so with them nothing is.
            if not one.fleet.rows[0].receipts and not one.fleet.joint:
                one.fleet.detour.known[one.key] = sent_here

    def send(self, fleet: Fleet, packed: Tensor, layout: Layout, place: Place) -> None:
        """Adds what is sent at a place which the rows compute, where their values are `packed` [N, ...]."""
        passing = {mix.column for mix in fleet.mixes} if place[0] is Component.HEAD_OUT else set()
        for positions, columns in fleet.groups(place, passing):
            old = packed[index_of(fleet, layout, positions, packed.device)]
            if fleet.has_passed(place, columns[0][0]):
                self._send_after(fleet, place, columns[0], positions, old)
                continue
            if self._are_single(place, columns):
                moves, units = sent_heads(fleet.rows, old, columns)
                moved = self.decoder.written_by_heads(place[1], moves.flatten(1, 2), units)
                moved = moved.unflatten(1, moves.shape[1:3]).transpose(0, 1)
                fleet.add([number for number, _ in columns], fleet.among(positions)[1], moved)
                continue
            new = sent(fleet.rows, old, columns, positions)
            self._move(fleet, place, positions, old, new, [number for number, _ in columns])
        if passing:
            self._send_with_mixes(fleet, packed, layout, place)

    def _send_after(self, fleet: Fleet, place: Place, column: Column, positions: tuple[int, ...], old: Tensor) -> None:
        """Adds what an MLP sends in a column that it has passed: it changes what it made of the column."""
        start = fleet.start(place[1], column[0], positions, old)
        new = sent(fleet.rows, old, [column], positions, start)
        rows, kept = fleet.among(positions)
        fleet.add([column[0]], kept, (new - start)[:, :, rows])

    def _are_single(self, place: Place, columns: Sequence[Column]) -> bool:
        """Whether each column is of one head alone, and what heads write adds up."""
        return (
            place[0] is Component.HEAD_OUT
            and not self.decoder.post_normed
            and all(len(sends) == 1 and len(sends[0].edit.units or ()) == 1 for _, sends in columns)
            and len({shape_of(sends[0]) for _, sends in columns}) == 1
        )

    def _send_with_mixes(self, fleet: Fleet, packed: Tensor, layout: Layout, place: Place) -> None:
        """As `send`, of columns that also go through heads of this block: all write through one projection and norm."""
        sends = dict(fleet.sends.get(place, ()))
        positions = tuple(layout.spans[fleet.rows[0]])
        _, kept = fleet.among(positions)
        old = packed[index_of(fleet, layout, positions, packed.device)]
        for number, units, mixed, unchanged in fleet.mixes:
            new = old[:, None].clone()
            there = mixed if unchanged is None else mixed - unchanged
            there = there[:, kept][:, :, list(units)].to(new.device)
            new[:, 0, :, list(units)] = there if unchanged is None else old[:, :, list(units)] + there
            for at, columns in by_positions([(number, sends[number])] if number in sends else []):
                rows = [positions.index(position) for position in at]
                new[:, :, rows] = sent(fleet.rows, old[:, rows], columns, at, new[:, :, rows])
            self._move(fleet, place, positions, old, new, [number])
        fleet.mixes.clear()

    def _move(
        self, fleet: Fleet, place: Place, positions: Sequence[int], old: Tensor, new: Tensor, numbers: list[int]
    ) -> None:
        """Adds what senders would write with values `new` [rows, columns, P, ...], less what they write with `old`."""
        every = [position for _ in range(new.shape[0] * new.shape[1]) for position in positions]
        moved = self._moved(place, old[:, None].expand(new.shape).flatten(0, 2), new.flatten(0, 2), every)
        moved = moved.view(*new.shape[:3], -1)
        _, kept = fleet.among(positions)
        fleet.add(numbers, kept, moved)
        self._join(fleet, place, numbers, kept, old, new, moved)

    def _join(
        self,
        fleet: Fleet,
        place: Place,
        numbers: list[int],
        kept: Sequence[int],
        old: Tensor,
        new: Tensor,
        moved: Tensor,
    ) -> None:
        """Notes what the heads of a block send, if together they write something else than their sum."""
        component, layer = place
        if component is Component.HEAD_OUT and self.decoder.post_normed:
            if layer not in fleet.joint:
                fleet.joint[layer] = JointHeads(self.decoder, layer, len(fleet.rows), len(fleet.positions))
            alone = all(fleet.is_of(place, number) for number in numbers)
            fleet.joint[layer].add(numbers, kept, old, new, None if alone else moved)

    def _moved(self, place: Place, old: Tensor, new: Tensor, positions: Sequence[int]) -> Tensor:
        """What a sender writes to the stream with the values `new` [M, ...], less what it writes with `old`: [M, D]."""
        component, layer = place
        decoder = self.decoder
        match component:
            case Component.TOKEN_EMBEDDING:
                at = torch.tensor(positions, device=new.device)
                return decoder.enter(new, at) - decoder.enter(old, at)
            case Component.HEAD_OUT if decoder.post_normed:
                return decoder.attention_output(layer, new) - decoder.attention_output(layer, old)
            case Component.HEAD_OUT:
                # The projection is linear but for its bias, so the difference of two results would only lose digits.
                output = decoder.attention_output(layer, torch.cat([new - old, torch.zeros_like(new[:1])]))
                return output[:-1] - output[-1:]
            case Component.NEURON:
                return decoder.neurons_output(layer, new) - decoder.neurons_output(layer, old)
        return new - old
