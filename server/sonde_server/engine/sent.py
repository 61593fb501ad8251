"""What senders would have with the changes that are sent in columns: values of their own, beside those of the rows."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .layout import Row
from .runs import Send
from .visits import add_distances, changed

Column = tuple[int, list[Send]]
"""The number of a column, and its sends at one place, in their order."""


def by_positions(columns: Iterable[Column]) -> Iterator[tuple[tuple[int, ...], list[Column]]]:
    """Columns grouped by the positions of their sends, together."""
    groups: dict[tuple[int, ...], list[Column]] = defaultdict(list)
    for number, sends in columns:
        positions = sends[0].edit.positions
        if any(send.edit.positions != positions for send in sends):
            positions = tuple(sorted({position for send in sends for position in send.edit.positions}))
        groups[positions].append((number, sends))
    return iter(groups.items())


def base_values(sends: Sequence[Send], positions: tuple[int, ...]) -> Tensor:
    """The base's values [P, ...] at the positions of a column's sends from one place."""
    found: dict[int, Tensor] = {}
    for send in sends:
        assert send.values is not None
        if send.edit.positions == positions:
            return send.values
        found.update(zip(send.edit.positions, send.values, strict=True))
    return torch.stack([found[position] for position in positions])


def sent(
    rows: Sequence[Row],
    old: Tensor,
    columns: Sequence[Column],
    positions: tuple[int, ...],
    start: Tensor | None = None,
) -> Tensor:
    """The values [rows, columns, P, ...] that senders would have, from those that they have: `old` [rows or 1, P, ...].

    `positions`: the P positions, where at least one send of a column is. `start`: what they would have before the
    sends, if that differs from `old`. The sends' distances are added to the rows'.
    """
    new = old[:, None].repeat(1, len(columns), *[1] * (old.dim() - 1)) if start is None else start.clone()
    stage = 0
    while batch := [(number, sends[stage]) for number, (_, sends) in enumerate(columns) if stage < len(sends)]:
        for group in _by_shape(batch):
            _change(rows, new, group, positions)
        stage += 1
    return new


def sent_heads(rows: Sequence[Row], old: Tensor, columns: Sequence[Column]) -> tuple[Tensor, list[int]]:
    """How far columns of one head each would move it: [columns, rows, P, d], from the mixes [rows, P, H, d]; the heads.

    All of them have one send, of one shape. The sends' distances are added to the rows'.
    """
    sends = [sends[0] for _, sends in columns]
    units = [unit for send in sends for unit in send.edit.units or ()]
    before = old[:, :, torch.tensor(units, device=old.device)].permute(2, 0, 1, 3).unsqueeze(3)  # [E, rows, P, 1, d]
    moves = changed(before, [send.edit.change for send in sends]) - before
    _add_distances(rows, sends, moves.float().flatten(2).square().sum(2))
    return moves[:, :, :, 0], units


def shape_of(send: Send) -> tuple[object, ...]:
    """What sends have in common that are made in one step."""
    values, units = send.edit.change.values, send.edit.units
    shape = tuple(values.shape) if isinstance(values, Tensor) else None
    return send.edit.change.kind, shape, None if units is None else len(units), len(send.edit.positions)


def _by_shape(batch: Sequence[tuple[int, Send]]) -> Iterator[list[tuple[int, Send]]]:
    """The sends that can be made in one step."""
    groups: dict[tuple[object, ...], list[tuple[int, Send]]] = defaultdict(list)
    for number, send in batch:
        groups[shape_of(send)].append((number, send))
    return iter(groups.values())


def _change(rows: Sequence[Row], new: Tensor, group: Sequence[tuple[int, Send]], positions: tuple[int, ...]) -> None:
    """Changes values [rows, columns, P, ...] in place."""
    device = new.device
    column = torch.tensor([number for number, _ in group], device=device)
    where: tuple[Tensor | slice, ...] = (slice(None), column)
    edits = [send.edit for _, send in group]
    whole = all(edit.positions == positions for edit in edits)
    if edits[0].units is not None or not whole:
        there = range(len(positions)) if whole else None
        position = torch.tensor(
            [there or [positions.index(position) for position in edit.positions] for edit in edits], device=device
        )
        where = (slice(None), column[:, None], position)
        if edits[0].units is not None:
            units = torch.tensor([edit.units for edit in edits], device=device)[:, None, :]
            where = (slice(None), column[:, None, None], position[..., None], units)
    old = new[where].transpose(0, 1)  # [columns, rows, P, ...]
    found = changed(old, [send.edit.change for _, send in group])
    new[where] = found.transpose(0, 1)
    squares = (found.float() - old.float()).flatten(2).square().sum(2)
    _add_distances(rows, [send for _, send in group], squares)


def _add_distances(rows: Sequence[Row], sends: Sequence[Send], squares: Tensor) -> None:
    """Adds the squared distances [sends, rows or 1] to those of the rows."""
    for number, row in enumerate(rows):
        if row.squares is not None:
            own = squares[:, number if squares.shape[1] > 1 else 0]
            add_distances([(row, send.edit) for send in sends], own)
