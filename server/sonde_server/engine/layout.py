"""How the tokens of many rows lie in one packed tensor [N, D]."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..domain import Component
from .plan import Extent
from .runs import Capture, PlacedEdit, Reading, Result, State


@dataclass(slots=True, eq=False)
class Row:
    """One run in a batch. `prefix` holds the positions before `extent.first`; `keep` asks for a whole State."""

    tokens: tuple[int, ...]
    prefix: State | None
    extent: Extent
    edits: dict[tuple[Component, int], list[PlacedEdit]]
    captures: tuple[Capture, ...] = ()
    reading: Reading | None = None
    receipts: int = 0
    keep: bool = False
    state: State | None = None
    result: Result = field(default_factory=Result)
    captured: dict[int, Tensor] = field(default_factory=dict)
    squares: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions this row computes."""
        return self.extent.end - self.extent.first

    @property
    def group(self) -> tuple[int, int, int]:
        """Rows of one group share their prefix and their positions, and so their attention."""
        return (self.extent.first, self.extent.end, id(self.prefix))


@dataclass(frozen=True, slots=True)
class Segment:
    """`rows` neighbouring rows over each of `prefixes`, all with the same positions."""

    offset: int
    first: int
    length: int
    prefixes: tuple[State | None, ...]
    rows: int
    members: tuple[Row, ...]

    @property
    def stop(self) -> int:
        """Where the segment ends."""
        return self.offset + len(self.prefixes) * self.rows * self.length


class Layout:
    """Rows in packed order: grouped, so that each group's tokens are neighbours."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row.group)
        self.offsets: dict[int, int] = {}
        total = 0
        for row in self.rows:
            self.offsets[id(row)] = total
            total += row.length
        self.tokens = total
        self.segments = self._segments()

    def index(self, row: Row, position: int) -> int:
        """Where a row's position lies."""
        return self.offsets[id(row)] + position - row.extent.first

    def positions(self, device: torch.device) -> Tensor:
        """Each token's position in its prompt, [N]."""
        ranges = [torch.arange(row.extent.first, row.extent.end) for row in self.rows]
        return torch.cat(ranges).to(device) if ranges else torch.empty(0, dtype=torch.long, device=device)

    def _segments(self) -> list[Segment]:
        groups: list[list[Row]] = []
        for row in self.rows:
            if groups and groups[-1][0].group == row.group:
                groups[-1].append(row)
            else:
                groups.append([row])
        merged: list[list[list[Row]]] = []
        for group in groups:
            head = merged[-1][0] if merged else None
            # Groups over different bases, alike in all else, share one call of attention.
            if head and head[0].group[:2] == group[0].group[:2] and len(head) == len(group):
                merged[-1].append(group)
            else:
                merged.append([group])
        return [
            Segment(
                self.offsets[id(groups[0][0])],
                groups[0][0].extent.first,
                groups[0][0].length,
                tuple(group[0].prefix for group in groups),
                len(groups[0]),
                tuple(row for group in groups for row in group),
            )
            for groups in merged
        ]
