"""Senders: what they would write to the stream with changed values, less what they write, goes into columns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.places import Component
from .fleets import Column, Fleet, by_positions, index_of, sent, sent_heads, shape_of
from .joint_heads import JointHeads
from .layout import Layout
from .visits import Place


class Senders:
    """Fills the columns of fleets (fleets.py) with what is sent."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def send_from_base(self, place: Place, fleets: list[Fleet]) -> None:
        """Adds what is sent at a place to the columns, for all fleets at once, because each may have one send alone."""
        olds, news, where = [], [], []
        for fleet in fleets:
            known = fleet.detour.known
            for positions, columns in by_positions(fleet.sends[place]):
                rows, kept = fleet.among(positions)
                numbers, key = [number for number, _ in columns], (place, positions, tuple(kept))
                if key in known:
                    fleet.add(numbers, kept, known[key])
                    continue
                values = columns[0][1][0].values
                assert values is not None
                old = values.to(self.decoder.device, self.decoder.dtype)[None]
                new = sent(fleet.rows, old, columns)
                if kept:
                    olds.append(old[:, None, rows].expand(new[:, :, rows].shape).flatten(0, 2))
                    news.append(new[:, :, rows].flatten(0, 2))
                    where.append((fleet, numbers, kept, key))
                    self._join(fleet, place, numbers, kept, old[:, rows], new[:, :, rows])
        if not where:
            return
        positions_of = [fleet.first + index for fleet, numbers, kept, _ in where for _ in numbers for index in kept]
        moved = self._moved(place, torch.cat(olds), torch.cat(news), positions_of)
        sizes = [len(numbers) * len(kept) for _, numbers, kept, _ in where]
        for (fleet, numbers, kept, key), part in zip(where, moved.split(sizes), strict=True):
            sent_here = part.view(1, len(numbers), len(kept), -1)
            fleet.add(numbers, kept, sent_here)
            # Distances and what heads write together are not kept, so with them nothing is.
            if not fleet.rows[0].receipts and not fleet.joint:
                fleet.detour.known[key] = sent_here

    def send(self, fleet: Fleet, packed: Tensor, layout: Layout, place: Place) -> None:
        """Adds what is sent at a place which the rows compute, where their values are `packed` [N, ...]."""
        passing = {number for number, _, _ in fleet.mixes} if place[0] is Component.HEAD_OUT else set()
        alone = [column for column in fleet.sends.get(place, ()) if column[0] not in passing]
        for positions, columns in by_positions(alone):
            old = packed[index_of(fleet, layout, positions, packed.device)]
            if self._are_single(place, columns):
                moves, units = sent_heads(fleet.rows, old, columns)
                moved = self.decoder.written_by_heads(place[1], moves.flatten(1, 2), units)
                moved = moved.unflatten(1, moves.shape[1:3]).transpose(0, 1)
                fleet.add([number for number, _ in columns], fleet.among(positions)[1], moved)
                continue
            new = sent(fleet.rows, old, columns)
            self._move(fleet, place, positions, old, new, [number for number, _ in columns])
        if passing:
            self._send_with_mixes(fleet, packed, layout, place)

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
        for number, units, mixed in fleet.mixes:
            new = old[:, None].clone()
            new[:, 0, :, list(units)] = mixed[:, kept][:, :, list(units)].to(new.device)
            for at, columns in by_positions([(number, sends[number])] if number in sends else []):
                rows = [positions.index(position) for position in at]
                new[:, :, rows] = sent(fleet.rows, old[:, rows], columns, new[:, :, rows])
            self._move(fleet, place, positions, old, new, [number])
        fleet.mixes.clear()

    def _move(
        self, fleet: Fleet, place: Place, positions: Sequence[int], old: Tensor, new: Tensor, numbers: list[int]
    ) -> None:
        """Adds what senders would write with values `new` [rows, columns, P, ...], less what they write with `old`."""
        every = [position for _ in range(new.shape[0] * new.shape[1]) for position in positions]
        moved = self._moved(place, old[:, None].expand(new.shape).flatten(0, 2), new.flatten(0, 2), every)
        _, kept = fleet.among(positions)
        fleet.add(numbers, kept, moved.view(*new.shape[:3], -1))
        self._join(fleet, place, numbers, kept, old, new)

    def _join(
        self, fleet: Fleet, place: Place, numbers: list[int], kept: Sequence[int], old: Tensor, new: Tensor
    ) -> None:
        """Notes what the heads of a block send, if together they write something else than their sum."""
        component, layer = place
        if component is Component.HEAD_OUT and self.decoder.post_normed:
            if layer not in fleet.joint:
                fleet.joint[layer] = JointHeads(self.decoder, layer, len(fleet.rows), len(fleet.positions))
            fleet.joint[layer].add(numbers, kept, old, new)

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
