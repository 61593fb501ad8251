"""How the tokens of many rows lie in one packed tensor [N, D]."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..questions.extents import Extent
from ..questions.places import Component
from .decoding import Slot
from .runs import Capture, PlacedEdit, Reading, Result, State
from .sampling import Choice


@dataclass(slots=True, eq=False)
class Row:
    """One run in a batch. `prefix` holds the positions before `extent.first`; `state` asks for all that it computes.

    A prefix may be the state of another row of the same batch, if that row stands before this one. `reads`:
    positions whose logits the state is to have. `slot`: where the keys and values of its own positions are kept, those
    of earlier steps included; a row that goes on behind its base has the `tokens` of its positions alone. `abandoned`
    is asked between blocks whether anybody still waits for the row; `dropped` says that nobody did.
    """

    tokens: tuple[int, ...]
    prefix: State | None
    extent: Extent
    edits: dict[tuple[Component, int], list[PlacedEdit]]
    captures: tuple[Capture, ...] = ()
    reading: Reading | None = None
    receipts: int = 0
    state: State | None = None
    reads: tuple[int, ...] = ()
    slot: Slot | None = None
    choice: Choice | None = None
    abandoned: Callable[[], bool] = lambda: False
    dropped: bool = False
    result: Result = field(default_factory=Result)
    captured: dict[int, Tensor] = field(default_factory=dict)
    squares: Tensor | None = None

    @property
    def positions(self) -> range:
        """The positions this row computes."""
        return range(self.extent.first, self.extent.end)

    @property
    def first(self) -> int:
        """Where its own keys begin; those before are its prefix's."""
        return self.extent.first if self.slot is None else min(self.extent.first, self.slot.first)

    @property
    def group(self) -> tuple[int, int, int, tuple[int, ...], int]:
        """Rows of one group share their prefix and their positions, and so their attention."""
        prefix = self.prefix.number if self.prefix is not None and self.first else 0
        return (self.first, self.extent.first, self.extent.end, self.extent.last, prefix)


@dataclass(frozen=True, slots=True)
class Segment:
    """`rows` neighbouring rows over each of `prefixes`, all with the same positions, `queries` of them attending.

    `offset` is where the segment's positions begin, `target` where those that attend do. The rows' own keys are
    those of `length` positions from `first` on; the `positions` that are computed now come last among them.
    """

    offset: int
    target: int
    first: int
    length: int
    positions: range
    queries: tuple[int, ...]
    prefixes: tuple[State | None, ...]
    rows: int
    members: tuple[Row, ...]

    @property
    def cut(self) -> slice:
        """The segment's positions."""
        return slice(self.offset, self.offset + len(self.members) * len(self.positions))

    @property
    def attending(self) -> slice:
        """Those that attend, among all that attend."""
        return slice(self.target, self.target + len(self.members) * len(self.queries))


class Layout:
    """Rows in packed order: grouped, so that each group's tokens are neighbours.

    A row has its whole extent in it, or what `spans` names.
    """

    def __init__(self, rows: Iterable[Row], spans: Mapping[int, Sequence[int]] | None = None) -> None:
        self.rows = sorted(rows, key=lambda row: row.group)
        self.spans: dict[int, Sequence[int]] = {}
        self.offsets: dict[int, int] = {}
        self.tokens = 0
        for row in self.rows:
            span = row.positions if spans is None else spans.get(id(row), row.positions)
            self.spans[id(row)] = span
            self.offsets[id(row)] = self.tokens
            self.tokens += len(span)

    def index(self, row: Row, position: int) -> int:
        """Where a row's position lies."""
        return self.offsets[id(row)] + self.spans[id(row)].index(position)

    def slice(self, row: Row) -> slice:
        """Where a row's positions lie."""
        offset = self.offsets[id(row)]
        return slice(offset, offset + len(self.spans[id(row)]))

    def positions(self, device: torch.device) -> Tensor:
        """Each token's position in its prompt, [N]."""
        every = [position for row in self.rows for position in self.spans[id(row)]]
        return torch.tensor(every, dtype=torch.long, device=device)

    def lengths(self, device: torch.device) -> Tensor:
        """How many tokens each token's prompt has, [N]."""
        # A row behind its base has the tokens of its own positions alone.
        every = [max(len(row.tokens), row.extent.end) for row in self.rows for _ in self.spans[id(row)]]
        return torch.tensor(every, dtype=torch.long, device=device)

    def narrowed(self, layer: int) -> "Layout":
        """The rows that end with this block cut to what is looked at there or above; itself where none is."""
        spans = {id(row): row.extent.last for row in self.rows if row.extent.stop == layer + 1}
        if all(len(self.spans[key]) == len(span) for key, span in spans.items()):
            return self
        return Layout(self.rows, {**self.spans, **spans})

    def pick(self, narrow: "Layout", device: torch.device) -> Tensor:
        """Where the tokens of a narrowed layout lie in this one."""
        places = [self.index(row, position) for row in narrow.rows for position in narrow.spans[id(row)]]
        return torch.tensor(places, dtype=torch.long, device=device)

    def segments(self, narrow: "Layout") -> list[Segment]:
        """Neighbouring rows that attend together, when those of `narrow` attend."""
        groups = [list(rows) for _, rows in groupby(self.rows, key=lambda row: row.group)]
        merged: list[list[list[Row]]] = []
        for group in groups:
            head = merged[-1][0] if merged else None
            # Groups over different bases, alike in all else, share one call of attention.
            if head and head[0].group[:4] == group[0].group[:4] and len(head) == len(group):
                merged[-1].append(group)
            else:
                merged.append([group])
        return [self._segment([row for group in groups for row in group], groups, narrow) for groups in merged]

    def _segment(self, members: list[Row], groups: list[list[Row]], narrow: "Layout") -> Segment:
        head = members[0]
        return Segment(
            offset=self.offsets[id(head)],
            target=narrow.offsets[id(head)],
            first=head.first,
            length=head.extent.end - head.first,
            positions=head.positions,
            queries=tuple(narrow.spans[id(head)]),
            prefixes=tuple(group[0].prefix for group in groups),
            rows=len(groups[0]),
            members=tuple(members),
        )
