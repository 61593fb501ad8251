"""Makes edits and copies captures at one place of a running batch.

Every component but scores and patterns is a packed tensor [N, units...]. Edits of many rows that are alike in
shape are made together: gathered, changed, and put back in one indexing each.
"""

from collections import defaultdict
from collections.abc import Container, Iterable

import torch
from torch import Tensor

from ..questions.places import Component
from .layout import Layout, Row
from .runs import Capture, Change, PlacedEdit

Place = tuple[Component, int]


class Visits:
    """Where the rows of a batch are edited and read, by component and layer."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Scores and patterns of all rows [rows, H, n, T] that somebody wants to see, and what has been seen of them.
        self.watched: frozenset[Place] = frozenset()
        self.seen: dict[Place, Tensor] = {}
        self._edits: dict[Place, list[tuple[Row, list[PlacedEdit]]]] = defaultdict(list)
        self._captures: dict[Place, list[tuple[Row, int, Capture]]] = defaultdict(list)
        for row in rows:
            for place, edits in row.edits.items():
                self._edits[place].append((row, edits))
            for number, capture in enumerate(row.captures):
                self._captures[capture.component, capture.layer].append((row, number, capture))

    def __contains__(self, place: Place) -> bool:
        return place in self._edits or place in self._captures

    def edits(self, place: Place, among: Container[int]) -> list[tuple[Row, list[PlacedEdit]]]:
        """The rows that are edited here, each with its edits in order; `among` has the ids of those that count."""
        return [(row, edits) for row, edits in self._edits.get(place, ()) if id(row) in among]

    def captures(self, place: Place, among: Container[int]) -> list[tuple[Row, int, Capture]]:
        """The rows that are read here, each with the number of its capture."""
        return [(row, *rest) for row, *rest in self._captures.get(place, ()) if id(row) in among]  # type: ignore[misc]

    def visit(self, packed: Tensor, layout: Layout, component: Component, layer: int) -> Tensor:
        """Makes the edits at a place, in the order of each run's list, then copies what is captured there."""
        place = component, layer
        if place not in self:
            return packed
        edited = self.edits(place, layout.offsets)
        stage = 0
        while batch := [(row, edits[stage]) for row, edits in edited if stage < len(edits)]:
            for alike in _alike(batch).values():
                packed = _change(packed, layout, alike)
            stage += 1
        for row, number, capture in self.captures(place, layout.offsets):
            index = torch.tensor([layout.index(row, p) for p in capture.positions], device=packed.device)
            values = packed[index]
            if capture.units is not None:
                values = values[:, torch.tensor(capture.units, device=packed.device)]
            row.captured[number] = values
        return packed


def _alike(batch: list[tuple[Row, PlacedEdit]]) -> dict[object, list[tuple[Row, PlacedEdit]]]:
    groups: dict[object, list[tuple[Row, PlacedEdit]]] = defaultdict(list)
    for row, edit in batch:
        values = edit.change.values
        shape = tuple(values.shape) if isinstance(values, Tensor) else None
        units = None if edit.units is None else len(edit.units)
        groups[edit.change.kind, len(edit.positions), units, shape].append((row, edit))
    return groups


def _change(packed: Tensor, layout: Layout, alike: list[tuple[Row, PlacedEdit]]) -> Tensor:
    device = packed.device
    tokens = torch.tensor([[layout.index(row, p) for p in edit.positions] for row, edit in alike], device=device)
    if alike[0][1].units is None:
        where: tuple[Tensor, ...] = (tokens,)
    else:
        where = (tokens[:, :, None], torch.tensor([edit.units for _, edit in alike], device=device)[:, None, :])
    old = packed[where]  # [E, P, U, ...]
    new = changed(old, [edit.change for _, edit in alike])
    receive(alike, (new.float() - old.float()).flatten(1).square().sum(1))
    if torch.is_grad_enabled():
        return packed.index_put(where, new)
    return packed.index_put_(where, new)


def changed(old: Tensor, changes: list[Change]) -> Tensor:
    """`old` [E, selection...] after `changes`, E of one kind."""
    kind = changes[0].kind
    first = changes[0].values
    if isinstance(first, Tensor):
        # Values broadcast from the right against a selection, which has one axis less than `old`.
        values = torch.stack([change.values for change in changes]).to(old.device)  # type: ignore[misc]
        values = values.reshape(len(changes), *[1] * (old.dim() - 1 - first.dim()), *first.shape)
    else:
        values = torch.tensor([change.values for change in changes], device=old.device)
        values = values.reshape(len(changes), *[1] * (old.dim() - 1))
    if kind == "project":
        direction = torch.nn.functional.normalize(values.double(), dim=-1)
        direction = direction.expand(*direction.shape[:-1], old.shape[-1]) if direction.shape[-1] == 1 else direction
        wide = old.double()
        return (wide - (wide * direction).sum(-1, keepdim=True) * direction).to(old.dtype)
    values = values.to(old.dtype)
    if kind == "multiply":
        return old * values
    if kind == "add":
        return old + values
    return values.expand_as(old)


def receive(alike: list[tuple[Row, PlacedEdit]], squares: Tensor) -> None:
    """Adds the squared distances by which edits moved what they hit to their rows' receipts."""
    for number, (row, edit) in enumerate(alike):
        if row.squares is not None:
            row.squares[edit.receipt] += squares[number].detach().to(row.squares.device)
