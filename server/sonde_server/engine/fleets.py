"""Fleets: rows of a batch whose detours differ only in who sees what, so that their columns are one tensor."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..questions.extents import first_block
from ..questions.places import Component
from ..questions.places import Place as Somewhere
from .joint_heads import JointHeads
from .layout import Layout, Row
from .runs import Detour, Send, Through
from .visits import Place, add_distances, changed

Column = tuple[int, list[Send]]
"""The number of a column, and its sends at one place, in their order."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What some units of a receiver see: `columns` [parts, rows, columns], each part at positions of its own."""

    units: tuple[int, ...]
    columns: Tensor
    positions: tuple[tuple[int, ...], ...]

    @property
    def key(self) -> bytes:
        """Equal for views that see the same."""
        return repr(self.positions).encode() + self.columns.numpy().tobytes()


@dataclass(slots=True, eq=False)
class Fleet:
    """Rows with the same sends and the same positions.

    columns: [rows, columns, positions, D]. before: as they were before the attention of the block that is computed, if
    its MLP does not read what attention writes.
    views: by place, what its receivers see. mixes: columns that go through heads of the block that is computed, with
    the heads, and the mixes [rows, positions, H, d]. joint: by block, its heads' columns, if they do not add up.
    """

    rows: list[Row]
    sends: dict[Place, list[Column]]
    through: dict[Place, list[Through]]
    views: dict[Place, list[View]]
    columns: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor | None = None
    mixes: list[tuple[int, tuple[int, ...], Tensor]] = field(default_factory=list)
    joint: dict[int, JointHeads] = field(default_factory=dict)
    # The columns from here on are still 0.
    high: int = 0

    @property
    def detour(self) -> Detour:
        """That of its first row; the others differ in who sees what."""
        assert self.rows[0].detour is not None
        return self.rows[0].detour

    @property
    def positions(self) -> range:
        """The positions of its rows, and of its columns."""
        return self.rows[0].positions

    @property
    def first(self) -> int:
        """The first of them."""
        return self.rows[0].extent.first

    @property
    def visited(self) -> set[Place]:
        """Where the rows' own values are needed."""
        return {*self.sends, *(place for place in self.through if place[0] is Component.HEAD_OUT)}

    def among(self, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Which of these positions its columns have, by their place in the list, and where in the columns they are."""
        found = [(number, position) for number, position in enumerate(positions) if position in self.positions]
        return [number for number, _ in found], [position - self.first for _, position in found]

    def is_below(self, place: Place, layers: int) -> bool:
        """Whether its rows leave a place as it is in their base."""
        return first_block(Somewhere(*place, ()), layers) < self.rows[0].extent.start

    def add(self, numbers: Sequence[int], kept: Sequence[int], moved: Tensor) -> None:
        """Adds `moved` [rows or 1, columns, P, D] to columns of these numbers, at P of their positions."""
        moved = moved.to(self.columns.device)
        self.high = max(self.high, *(number + 1 for number in numbers))
        if len(kept) == self.columns.shape[2] and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
            self.columns[:, numbers[0] : numbers[-1] + 1] += moved
            return
        column = torch.tensor(numbers, device=moved.device)[:, None]
        self.columns[:, column, torch.tensor(kept, device=moved.device)] += moved

    def added(
        self, views: Sequence[View], positions: Sequence[int], *, extra: int | None = None, early: bool = False
    ) -> Tensor:
        """What views see beside the stream, at some of the rows' positions: [rows, views, P, D].

        `extra`: a column that they see too. `early`: whether they read before attention writes, if MLPs run beside it.
        """
        _, kept = self.among(positions)
        held = self.before if early and self.before is not None else self.columns
        columns = held[:, : self.high] if len(kept) == held.shape[2] else held[:, : self.high, kept]
        seen = torch.cat([view.columns for view in views]).transpose(0, 1)
        # One product for all views, because reading the columns is what takes time.
        mask = seen[..., : self.high].to(columns.device, columns.dtype)
        added = (mask @ columns.flatten(2)).unflatten(2, columns.shape[2:])
        for joint in self.joint.values():
            if (correction := joint.correction(seen, self.columns)) is not None:
                added += correction[:, :, kept].to(added.device)
        for number, there in enumerate(part for view in views for part in view.positions):
            if not set(positions) <= set(there):
                added[:, number] *= torch.tensor([p in there for p in positions], device=added.device)[:, None]
        if added.shape[1] > len(views):
            parts = added.split([len(view.columns) for view in views], dim=1)
            added = torch.stack([part.sum(1) for part in parts], 1)
        if extra is not None:
            added += held[:, extra, None, kept]
        found: Tensor = added
        return found

    def seen_by(self, component: Component, layer: int, every: int | None = None) -> list[View]:
        """The views of a receiver. `every`: how many units it has, if also those are wanted that see nothing."""
        views = self.views.get((component, layer), [])
        if every is None:
            return views
        seeing = {unit for view in views for unit in view.units}
        others = tuple(unit for unit in range(every) if unit not in seeing)
        nothing = torch.zeros(len(self.rows), self.detour.columns, dtype=torch.bool)
        return [*views, View(others, nothing[None], (tuple(self.positions),))] if others else views

    def part(self, here: Sequence[bool]) -> "Fleet":
        """Some of its rows."""
        rows = [row for row, there in zip(self.rows, here, strict=True) if there]
        index = torch.tensor([number for number, there in enumerate(here) if there])
        return replace(
            self,
            rows=rows,
            views=_views(rows),
            columns=self.columns[index.to(self.columns.device)] if self.columns.numel() else self.columns,
            before=None if self.before is None else self.before[index.to(self.before.device)],
            mixes=[(number, units, mixed[index.to(mixed.device)]) for number, units, mixed in self.mixes],
            joint={layer: heads.part(index) for layer, heads in self.joint.items()},
        )


def fleets_of(rows: Iterable[Row]) -> list[Fleet]:
    """The fleets of a batch, each with its rows in the order of a layout."""
    found: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.detour is not None:
            found[id(row.detour.sends), id(row.detour.through), row.detour.columns, row.extent].append(row)
    return [_fleet(sorted(members, key=lambda row: row.group)) for members in found.values()]


def _fleet(rows: list[Row]) -> Fleet:
    detour = rows[0].detour
    assert detour is not None
    columns: dict[Place, dict[int, list[Send]]] = defaultdict(lambda: defaultdict(list))
    for send in detour.sends:
        columns[send.edit.component, send.edit.layer][send.column].append(send)
    through: dict[Place, list[Through]] = defaultdict(list)
    for one in detour.through:
        through[one.component, one.layer].append(one)
    return Fleet(rows, {place: list(some.items()) for place, some in columns.items()}, dict(through), _views(rows))


def _views(rows: Sequence[Row]) -> dict[Place, list[View]]:
    """What receivers see, those that see the same together; without those that see nothing."""
    reads: dict[Place, dict[tuple[int, ...], dict[int, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for number, row in enumerate(rows):
        assert row.detour is not None
        for one in row.detour.reads:
            reads[one.component, one.layer][one.positions][number] = one.columns
    views: dict[Place, list[View]] = {}
    for place, parts in reads.items():
        nothing = torch.zeros_like(next(iter(next(iter(parts.values())).values())))
        seen = torch.stack(
            [
                torch.stack([columns.get(number, nothing) for number in range(len(rows))], 1)
                for columns in parts.values()
            ],
            1,
        )  # [units, parts, rows, columns]
        alike: dict[bytes, list[int]] = defaultdict(list)
        for unit in seen.flatten(1).any(1).nonzero()[:, 0].tolist():
            alike[seen[unit].numpy().tobytes()].append(unit)
        views[place] = [View(tuple(units), seen[units[0]], tuple(parts)) for units in alike.values()]
    return views


def by_positions(columns: Iterable[Column]) -> Iterator[tuple[tuple[int, ...], list[Column]]]:
    """Columns grouped by the positions of their sends; of a column whose sends differ, the sends are."""
    groups: dict[tuple[int, ...], list[Column]] = defaultdict(list)
    for number, sends in columns:
        split: dict[tuple[int, ...], list[Send]] = defaultdict(list)
        for send in sends:
            split[send.edit.positions].append(send)
        for positions, some in split.items():
            groups[positions].append((number, some))
    return iter(groups.items())


def index_of(fleet: Fleet, layout: Layout, positions: Sequence[int], device: torch.device) -> Tensor:
    """Where positions of the rows lie in a packed tensor: [rows, positions]."""
    where = [[layout.index(row, position) for position in positions] for row in fleet.rows]
    return torch.tensor(where, dtype=torch.long, device=device).view(len(fleet.rows), len(positions))


def sent(rows: Sequence[Row], old: Tensor, columns: Sequence[Column], start: Tensor | None = None) -> Tensor:
    """The values [rows, columns, P, ...] that senders would have, from those that they have: `old` [rows or 1, P, ...].

    `start`: what they would have before the sends, if that differs from `old`. The sends' distances are added to the
    rows'.
    """
    new = old[:, None].repeat(1, len(columns), *[1] * (old.dim() - 1)) if start is None else start.clone()
    stage = 0
    while batch := [(number, sends[stage]) for number, (_, sends) in enumerate(columns) if stage < len(sends)]:
        for group in _by_shape(batch):
            _change(rows, new, group)
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
    return send.edit.change.kind, shape, None if units is None else len(units)


def _by_shape(batch: Sequence[tuple[int, Send]]) -> Iterator[list[tuple[int, Send]]]:
    """The sends that can be made in one step."""
    groups: dict[tuple[object, ...], list[tuple[int, Send]]] = defaultdict(list)
    for number, send in batch:
        groups[shape_of(send)].append((number, send))
    return iter(groups.values())


def _change(rows: Sequence[Row], new: Tensor, group: Sequence[tuple[int, Send]]) -> None:
    """Changes values [rows, columns, P, ...] in place."""
    device = new.device
    column = torch.tensor([number for number, _ in group], device=device)
    where: tuple[Tensor | slice, ...] = (slice(None), column)
    if group[0][1].edit.units is not None:
        units = torch.tensor([send.edit.units for _, send in group], device=device)[:, None, :]
        position = torch.arange(new.shape[2], device=device)[None, :, None]
        where = (slice(None), column[:, None, None], position, units)
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
