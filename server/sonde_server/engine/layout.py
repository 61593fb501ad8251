"""Rows, which are the runs of a batch, and how their tokens lie in one packed tensor [N, D]."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from ..questions.extents import Extent
from ..questions.images import CAUSAL, Image, Sight, sight_of
from .runs import Capture, Detour, PlacedEdit, Reading, Result, State
from .sampling import Choice
from .slots import Slot


@dataclass(slots=True, eq=False)
class Row:
    """One run in a batch.

    tokens: those of the whole prompt; if the row continues its base, only its own.
    prefix: the base that holds the positions before `extent.first`. It may be the state of another row of the same
    batch, if that row comes before this one.
    edits: in the order in which they are made.
    state: receives everything that the row computes, with the logits of the positions in `reads`.
    slot: where the keys and values of its own positions are kept, including those of earlier steps.
    inputs: what the vision tower takes of its image, where it has been prepared.
    abandoned: called between blocks to find out whether nobody waits for the row any more; `dropped` is then true.
    """

    tokens: tuple[int, ...]
    prefix: State | None
    extent: Extent
    edits: Sequence[PlacedEdit] = ()
    captures: tuple[Capture, ...] = ()
    reading: Reading | None = None
    receipts: int = 0
    state: State | None = None
    reads: tuple[int, ...] = ()
    slot: Slot | None = None
    choices: tuple[Choice, ...] = ()
    detour: Detour | None = None
    inputs: Mapping[str, Tensor] | None = None
    abandoned: Callable[[], bool] = lambda: False
    dropped: bool = False
    result: Result = field(default_factory=Result)
    captured: dict[int, Tensor] = field(default_factory=dict)
    squares: Tensor | None = None

    @property
    def places(self) -> tuple[PlacedEdit | Capture, ...]:
        """Everything that is changed or read in it, but for what goes along paths."""
        return (*self.edits, *self.captures)

    @property
    def image(self) -> Image | None:
        """The image of its prompt."""
        kept = self.prefix if self.state is None else self.state
        return None if kept is None else kept.image

    @property
    def sight(self) -> Sight:
        """What its positions see."""
        return sight_of(self.image)

    @property
    def positions(self) -> range:
        """The positions this row computes."""
        return range(self.extent.first, self.extent.end)

    @property
    def first(self) -> int:
        """Where its own keys begin; those before are its prefix's."""
        return self.extent.first if self.slot is None else min(self.extent.first, self.slot.first)

    @property
    def group(self) -> tuple[int, int, int, tuple[int, ...], Sight, int, int]:
        """Rows of one group have the same prefix and in every block the same positions, and so attend in one call."""
        prefix = self.prefix.number if self.prefix is not None and self.first else 0
        extent = self.extent
        # Rows that are cut to some positions in their last block differ there from those that go on.
        cut = extent.stop if len(extent.last) < len(self.positions) else 0
        return (self.first, extent.first, extent.end, extent.last, self.sight, cut, prefix)


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows that attend in one call: `rows` of them over each of `prefixes`, all with the same positions.

    `offset` is where the segment's positions begin in the packed tensor. Those that attend are `queries`, and begin at
    `target` in the tensor of all queries. The rows' own keys are those of `length` positions from `first` on, of which
    the `positions` that are computed now are the last.
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
    sight: Sight = CAUSAL

    @property
    def cut(self) -> slice:
        """Where the segment's positions lie."""
        return slice(self.offset, self.offset + len(self.members) * len(self.positions))

    @property
    def attending(self) -> slice:
        """Where its queries lie in the tensor of all queries."""
        return slice(self.target, self.target + len(self.members) * len(self.queries))


class Layout:
    """Rows in packed order: sorted by group, so that the tokens of a group are neighbours.

    `spans`: the positions of a row that are in the tensor; of rows that it does not name, their whole extent.
    """

    def __init__(self, rows: Iterable[Row], spans: Mapping[Row, Sequence[int]] | None = None) -> None:
        self.rows = sorted(rows, key=lambda row: row.group)
        self.spans: dict[Row, Sequence[int]] = {}
        self.offsets: dict[Row, int] = {}
        self.tokens = 0
        for row in self.rows:
            span = row.positions if spans is None else spans.get(row, row.positions)
            self.spans[row] = span
            self.offsets[row] = self.tokens
            self.tokens += len(span)

    def index(self, row: Row, position: int) -> int:
        """Where a row's position lies."""
        return self.offsets[row] + self.spans[row].index(position)

    def slice(self, row: Row) -> slice:
        """Where a row's positions lie."""
        offset = self.offsets[row]
        return slice(offset, offset + len(self.spans[row]))

    def positions(self, device: torch.device) -> Tensor:
        """Each token's position in its prompt, [N]."""
        every = [position for row in self.rows for position in self.spans[row]]
        return torch.tensor(every, dtype=torch.long, device=device)

    def turns(self, device: torch.device) -> Tensor:
        """What rotary angles are of, as `turns_of` says."""
        return turns_of(((row.image, self.spans[row]) for row in self.rows), device)

    def lengths(self, device: torch.device) -> Tensor:
        """How many tokens each token's prompt has, [N]."""
        # A row that continues its base has only the tokens of its own positions.
        every = [max(len(row.tokens), row.extent.end) for row in self.rows for _ in self.spans[row]]
        return torch.tensor(every, dtype=torch.long, device=device)

    def narrowed(self, layer: int) -> "Layout":
        """This layout, with rows whose last block this is cut to the positions that matter there or above it.

        Itself where no row is cut.
        """
        spans = {row: row.extent.last for row in self.rows if row.extent.stop == layer + 1}
        if all(len(self.spans[row]) == len(span) for row, span in spans.items()):
            return self
        return Layout(self.rows, {**self.spans, **spans})

    def pick(self, narrow: "Layout", device: torch.device) -> Tensor:
        """Where the tokens of a narrowed layout lie in this one."""
        places = [self.index(row, position) for row in narrow.rows for position in narrow.spans[row]]
        return torch.tensor(places, dtype=torch.long, device=device)

    def segments(self, narrow: "Layout") -> list[Segment]:
        """The calls of attention; the queries are the positions that are in `narrow`."""
        groups = [list(rows) for _, rows in groupby(self.rows, key=lambda row: row.group)]
        merged: list[list[list[Row]]] = []
        for group in groups:
            head = merged[-1][0] if merged else None
            # Groups that differ only in their base attend in one call.
            if head and head[0].group[:-1] == group[0].group[:-1] and len(head) == len(group):
                merged[-1].append(group)
            else:
                merged.append([group])
        return [self._segment([row for group in groups for row in group], groups, narrow) for groups in merged]

    @property
    def only_segment(self) -> Segment:
        """The segment of rows of one group, all of whose positions attend."""
        (segment,) = self.segments(self)
        return segment

    def _segment(self, members: list[Row], groups: list[list[Row]], narrow: "Layout") -> Segment:
        head = members[0]
        return Segment(
            offset=self.offsets[head],
            target=narrow.offsets[head],
            first=head.first,
            length=head.extent.end - head.first,
            positions=head.positions,
            queries=tuple(narrow.spans[head]),
            prefixes=tuple(group[0].prefix for group in groups),
            rows=len(groups[0]),
            members=tuple(members),
            sight=head.sight,
        )


def turns_of(spans: Iterable[tuple[Image | None, Iterable[int]]], device: torch.device) -> Tensor:
    """What rotary angles are of, at positions of prompts with these images: the positions [N].

    If any image has coordinates of its own: time, row and column of each position [3, N].
    """
    pairs = [(None if image is None else image.arrangement.turned, positions) for image, positions in spans]
    if all(turned is None for turned, _ in pairs):
        every = [position for _, positions in pairs for position in positions]
        return torch.tensor(every, dtype=torch.long, device=device)
    axes = [(p, p, p) if turned is None else turned.coordinates(p) for turned, positions in pairs for p in positions]
    return torch.tensor(axes, dtype=torch.long, device=device).reshape(-1, 3).T


def by_reading(rows: Iterable[Row]) -> dict[Reading, list[Row]]:
    """Rows grouped by what is read of them, so that one softmax serves a group."""
    groups: dict[Reading, list[Row]] = defaultdict(list)
    for row in rows:
        if row.reading is not None:
            groups[row.reading].append(row)
    return groups


def by_choice(rows: Iterable[Row]) -> list[list[tuple[Row, Choice]]]:
    """Rows with the choices of their next tokens; those that are chosen in the same way at once are together."""
    groups: dict[Hashable, list[tuple[Row, Choice]]] = defaultdict(list)
    for row in rows:
        for choice in row.choices:
            groups[choice.way].append((row, choice))
    return list(groups.values())
