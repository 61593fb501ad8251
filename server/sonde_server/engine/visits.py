"""Makes the edits and copies the captures of a batch, at each place that it passes.

Every component except scores and patterns is a packed tensor [N, units...]. Edits of several rows that have the same
shape are made in one step: their values are gathered, changed, and written back, with one indexing each.
"""

from collections import defaultdict
from collections.abc import Container, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..questions.places import Component
from .layout import Layout, Row
from .runs import Capture, Change, PlacedEdit

Place = tuple[Component, int]
"""A component of a layer."""


class Shape(NamedTuple):
    """What edits have to have in common to be made in one step."""

    kind: str
    positions: int
    units: int | None
    values: tuple[int, ...] | None


class Sending(Protocol):
    """What takes changes along paths (detours.py)."""

    def __contains__(self, place: Place) -> bool:
        """Whether rows have senders at a place."""

    def send(self, packed: Tensor, layout: Layout, place: Place) -> None:
        """Takes what the senders at a place would write."""


class Visits:
    """Where the rows of a batch are edited and read. `detours`: what is sent along paths from there."""

    def __init__(self, rows: Iterable[Row]) -> None:
        # Places whose scores or patterns [rows, H, n, T] are collected whole, and those that have been.
        self.watched: frozenset[Place] = frozenset()
        self.seen: dict[Place, Tensor] = {}
        self.detours: Sending | None = None
        self._edits: dict[Place, dict[Row, list[PlacedEdit]]] = defaultdict(lambda: defaultdict(list))
        self._captures: dict[Place, list[tuple[Row, int, Capture]]] = defaultdict(list)
        for row in rows:
            for edit in row.edits:
                self._edits[edit.component, edit.layer][row].append(edit)
            for number, capture in enumerate(row.captures):
                self._captures[capture.component, capture.layer].append((row, number, capture))

    def __contains__(self, place: Place) -> bool:
        if place in self._edits or place in self._captures:
            return True
        return self.detours is not None and place in self.detours

    def edits(self, place: Place, among: Container[Row]) -> list[tuple[Row, list[PlacedEdit]]]:
        """Those of the rows `among` that are edited here, each with its edits in order."""
        return [(row, edits) for row, edits in self._edits.get(place, {}).items() if row in among]

    def captures(self, place: Place, among: Container[Row]) -> list[tuple[Row, int, Capture]]:
        """Those of the rows `among` that are read here, each with the number of its capture."""
        return [found for found in self._captures.get(place, ()) if found[0] in among]

    def visit(self, packed: Tensor, layout: Layout, component: Component, layer: int) -> Tensor:
        """Makes the edits at a place, each row's in their order, then copies what is captured there."""
        place = component, layer
        if place not in self:
            return packed
        edited = self.edits(place, layout.offsets)
        stage = 0
        while batch := [(row, edits[stage]) for row, edits in edited if stage < len(edits)]:
            for group in _by_shape(batch).values():
                packed = _change(packed, layout, group)
            stage += 1
        if self.detours is not None:
            self.detours.send(packed, layout, place)
        for row, number, capture in self.captures(place, layout.offsets):
            index = torch.tensor([layout.index(row, p) for p in capture.positions], device=packed.device)
            values = packed[index]
            if capture.units is not None:
                values = values[:, torch.tensor(capture.units, device=packed.device)]
            row.captured[number] = values
        return packed


def _by_shape(batch: list[tuple[Row, PlacedEdit]]) -> dict[Shape, list[tuple[Row, PlacedEdit]]]:
    groups: dict[Shape, list[tuple[Row, PlacedEdit]]] = defaultdict(list)
    for row, edit in batch:
        values = edit.change.values
        shape = tuple(values.shape) if isinstance(values, Tensor) else None
        units = None if edit.units is None else len(edit.units)
        groups[Shape(edit.change.kind, len(edit.positions), units, shape)].append((row, edit))
    return groups


def _change(packed: Tensor, layout: Layout, group: list[tuple[Row, PlacedEdit]]) -> Tensor:
    device = packed.device
    tokens = torch.tensor([[layout.index(row, p) for p in edit.positions] for row, edit in group], device=device)
    if group[0][1].units is None:
        where: tuple[Tensor, ...] = (tokens,)
    else:
        where = (tokens[:, :, None], torch.tensor([edit.units for _, edit in group], device=device)[:, None, :])
    old = packed[where]  # [E, P, U, ...]
    new = changed(old, [edit.change for _, edit in group])
    add_distances(group, (new.float() - old.float()).flatten(1).square().sum(1))
    if torch.is_grad_enabled():
        return packed.index_put(where, new)
    return packed.index_put_(where, new)


def changed(old: Tensor, changes: list[Change]) -> Tensor:
    """The values `old` [E, selection...] after E changes of one kind."""
    kind = changes[0].kind
    first = changes[0].values
    if isinstance(first, Tensor):
        # Values broadcast from the right against a selection, and `old` has one more axis than that.
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


def add_distances(group: list[tuple[Row, PlacedEdit]], squares: Tensor) -> None:
    """Adds the squared distances [E] by which edits moved the values that they selected to those of their rows."""
    for number, (row, edit) in enumerate(group):
        if row.squares is not None:
            row.squares[edit.receipt] += squares[number].detach().to(row.squares.device)
