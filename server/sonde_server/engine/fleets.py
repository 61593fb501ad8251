"""Fleets: rows of a batch whose detours differ only in who sees what, so that their columns are one tensor."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..questions.extents import first_block
from ..questions.graph import READ_BY_HEADS
from ..questions.places import PAIRWISE, Component
from ..questions.places import Place as Somewhere
from .joint_heads import JointHeads
from .layout import Layout, Row
from .runs import Detour, Send, Through
from .sent import Column, by_positions
from .visits import Place

# From what heads read to their mixes.
_INSIDE = frozenset({*READ_BY_HEADS, *PAIRWISE, Component.HEAD_OUT})


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


class Mix(NamedTuple):
    """The mixes [rows, positions, H, d] of heads of a block that a column goes through.

    `unchanged`: without the column, where rows have edits inside attention, which leave alone what goes along paths.
    None: those of the rows.
    """

    column: int
    units: tuple[int, ...]
    mixed: Tensor
    unchanged: Tensor | None


@dataclass(slots=True, eq=False)
class Fleet:
    """Rows with the same sends and the same positions.

    columns: [rows, columns, positions, D]. before: as they were before the attention of the block that is computed, if
    its MLP does not read what attention writes.
    views: by place, what its receivers see. mixes: columns that go through heads of the block that is computed. passed:
    by block and column, what a column [rows or 1, positions, D] has from an MLP that it goes through and that sends in
    it too. joint: by block, its heads' columns, if they do not add up.
    """

    rows: list[Row]
    sends: dict[Place, list[Column]]
    through: dict[Place, list[Through]]
    views: dict[Place, list[View]]
    columns: Tensor = field(default_factory=lambda: torch.empty(0))
    before: Tensor | None = None
    mixes: list[Mix] = field(default_factory=list)
    passed: dict[tuple[int, int], Tensor] = field(default_factory=dict)
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

    def let_through(self, layer: int, number: int, kept: Sequence[int], moved: Tensor) -> None:
        """Adds what an MLP made of a column [rows or 1, P, D] to the column."""
        self.add([number], kept, moved[:, None])
        if number in dict(self.sends.get((Component.MLP_OUT, layer), ())):
            whole = moved.new_zeros(len(moved), len(self.positions), moved.shape[-1])
            whole[:, list(kept)] = moved
            self.passed[layer, number] = whole

    def groups(self, place: Place, leaving_out: Container[int] = ()) -> Iterator[tuple[tuple[int, ...], list[Column]]]:
        """The columns that are sent from a place, by the positions of their sends; each that passed it, alone."""
        columns = [column for column in self.sends.get(place, ()) if column[0] not in leaving_out]
        yield from by_positions(column for column in columns if not self.has_passed(place, column[0]))
        for column in columns:
            if self.has_passed(place, column[0]):
                yield from by_positions([column])

    def has_passed(self, place: Place, number: int) -> bool:
        """Whether a column went through the MLP that now sends in it."""
        return place[0] is Component.MLP_OUT and (place[1], number) in self.passed

    def start(self, layer: int, number: int, positions: Sequence[int], old: Tensor) -> Tensor:
        """What an MLP made of a column that it has passed [rows, 1, P, D], where it has `old` in the rows."""
        rows, kept = self.among(positions)
        start = old[:, None].repeat(len(self.rows) // len(old), 1, 1, 1)
        start[:, 0, rows] += self.passed[layer, number][:, kept].to(start.device)
        return start

    def is_edited_inside(self, layer: int) -> bool:
        """Whether a row has edits inside the attention of a block."""
        return any(edit.layer == layer and edit.component in _INSIDE for row in self.rows for edit in row.edits)

    def is_of(self, place: Place, number: int) -> bool:
        """Whether nothing but what this place sends goes along a column."""
        return not any(one.column == number for nodes in self.through.values() for one in nodes) and not any(
            number == other for elsewhere, columns in self.sends.items() if elsewhere != place for other, _ in columns
        )

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
        for number, there in enumerate(part for view in views for part in view.positions):
            if not set(positions) <= set(there):
                added[:, number] *= torch.tensor([p in there for p in positions], device=added.device)[:, None]
        sizes = [len(view.columns) for view in views]
        if added.shape[1] > len(views):
            added = torch.stack([part.sum(1) for part in added.split(sizes, dim=1)], 1)
        if extra is not None:
            added += held[:, extra, None, kept]
        for joint in self.joint.values():
            heads = _seen_at(seen[..., joint.numbers].split(sizes, dim=1), views, positions)
            if extra in joint.numbers:
                heads[:, :, joint.numbers.index(extra)] = True
            if (correction := joint.correction(heads, self.columns, kept)) is not None:
                added += correction.to(added.device)
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
            mixes=[
                mix._replace(
                    mixed=mix.mixed[index.to(mix.mixed.device)],
                    unchanged=None if mix.unchanged is None else mix.unchanged[index.to(mix.unchanged.device)],
                )
                for mix in self.mixes
            ],
            passed={
                key: moved if len(moved) == 1 else moved[index.to(moved.device)] for key, moved in self.passed.items()
            },
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


def _seen_at(parts: Sequence[Tensor], views: Sequence[View], positions: Sequence[int]) -> Tensor:
    """Which columns views see at each position: [rows, views, columns, P], from their parts [rows, parts, columns]."""
    found = []
    for part, view in zip(parts, views, strict=True):
        there = torch.tensor([[p in some for p in positions] for some in map(set, view.positions)])
        found.append((part[..., None] & there[:, None]).any(1))
    return torch.stack(found, 1)


def index_of(fleet: Fleet, layout: Layout, positions: Sequence[int], device: torch.device) -> Tensor:
    """Where positions of the rows lie in a packed tensor: [rows, positions]."""
    where = [[layout.index(row, position) for position in positions] for row in fleet.rows]
    return torch.tensor(where, dtype=torch.long, device=device).view(len(fleet.rows), len(positions))
