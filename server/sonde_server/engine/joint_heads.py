"""Heads of one block that write through one norm: what several columns come to together is not the sum of each.

In a model whose attention output is normed before it is added to the stream, the norm is of what all heads write. A
receiver that sees the columns of several heads of a block reads norm(output of all heads as it sees them).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder


class JointHeads:
    """The columns of one block's heads, for rows of one fleet."""

    def __init__(self, decoder: Decoder, layer: int, rows: int, positions: int) -> None:
        self._decoder = decoder
        self._layer = layer
        shape = (rows, positions, decoder.heads, decoder.head_size)
        self.numbers: list[int] = []
        self._old = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self._moves: list[Tensor] = []
        # What other columns, to which more than these heads adds, have from them: [rows, positions, D], by number.
        self._parts: dict[int, Tensor] = {}

    def add(
        self, numbers: Sequence[int], kept: Sequence[int], old: Tensor, new: Tensor, written: Tensor | None
    ) -> None:
        """Takes the mixes `old` [rows or 1, P, H, d] and `new` [rows or 1, columns, P, H, d] of some columns.

        `kept`: where in the columns the positions lie. `written` [rows or 1, columns, P, D]: what each adds to its
        column; None if the columns have nothing else.
        """
        self._old[:, list(kept)] = old.to(self._old)
        moves = self._old.new_zeros(len(self._old), len(numbers), *self._old.shape[1:])
        moves[:, :, list(kept)] = (new - old[:, None]).to(self._old)
        if written is not None:
            for order, number in enumerate(numbers):
                part = written.new_zeros(*self._old.shape[:2], written.shape[-1])
                part[:, list(kept)] = written[:, order]
                self._parts[number] = part
        self.numbers += numbers
        self._moves.append(moves)

    def part(self, index: Tensor) -> "JointHeads":
        """That of some of the rows."""
        part = JointHeads(self._decoder, self._layer, 0, 0)
        index = index.to(self._old.device)
        part.numbers, part._old = self.numbers, self._old[index]
        part._moves = [moves[index] for moves in self._moves]
        part._parts = {number: one[index] for number, one in self._parts.items()}
        return part

    def correction(self, seen: Tensor, columns: Tensor, kept: Sequence[int]) -> Tensor | None:
        """What is added to the sums of the columns that views see: [rows, views, P, D]. None: nothing.

        `seen`, bool [rows, views, columns, P], is of the columns of these heads, at the positions `kept` of `columns`
        [rows, columns, n, D], which are those of all numbers.
        """
        if int(seen.sum(2).max()) < 2:
            return None
        moves = torch.cat(self._moves, 1) if len(self._moves) > 1 else self._moves[0]
        self._moves = [moves]
        old = self._old[:, kept, None].transpose(1, 2)
        mask = seen.to(moves.device, moves.dtype)
        mixed = old + torch.einsum("rvep,rephd->rvphd", mask, moves[:, :, kept])
        output = self._decoder.attention_output(self._layer, torch.cat([old, mixed], 1).flatten(0, 2))
        output = output.unflatten(0, (mixed.shape[0], -1, mixed.shape[2]))
        there = columns[:, self.numbers].to(output.device)
        for order, number in enumerate(self.numbers):
            if number in self._parts:
                there[:, order] = self._parts[number]
        summed = torch.einsum("rvep,repd->rvpd", mask.to(there), there[:, :, kept])
        correction: Tensor = output[:, 1:] - output[:, :1] - summed
        return correction
