"""What a run that is continued keeps from step to step: keys and values, one position longer each time.

The positions before a run's first changed one are not kept: they are its base's, shared by all runs over it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layout import Row, Segment

# Room for this many positions more is made when it is first known how much is needed.
ROOM = 32


class KeyValueCache:
    """Keys and values of several runs from position `first` on, [slots, positions, K, d] a layer.

    Positions are appended in place; where there is no room, the room doubles, so that a position is copied twice at
    most on average. `limit`: the positions that will ever be held.
    """

    def __init__(self, slots: int, first: int, limit: int) -> None:
        self.slots = slots
        self.first = first
        self.limit = limit
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, layer: int, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with room for so many positions; `like` [..., K, d] says of what kind."""
        held = self._layers.get(layer)
        if held is None or held[0].shape[1] < positions:
            room = positions + ROOM if held is None else max(positions, 2 * held[0].shape[1])
            shape = (self.slots, min(room, self.limit), *like.shape[-2:])
            grown = (like.new_empty(shape), like.new_empty(shape))
            for new, old in zip(grown, held or (), strict=False):
                new[:, : old.shape[1]] = old
            held = self._layers[layer] = grown
        return held


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A run's place in a cache."""

    cache: KeyValueCache
    number: int

    @property
    def first(self) -> int:
        """The first position that is held here."""
        return self.cache.first


def allot(firsts: Sequence[int], end: int) -> list[Slot]:
    """A slot for each of some runs, whose own keys begin at these positions and end before `end`.

    Runs that begin alike share a cache, in their order, so that attention reads it as it lies.
    """
    counts: dict[int, int] = defaultdict(int)
    numbers = []
    for first in firsts:
        numbers.append(counts[first])
        counts[first] += 1
    caches = {first: KeyValueCache(count, first, end - first) for first, count in counts.items()}
    return [Slot(caches[first], number) for first, number in zip(firsts, numbers, strict=True)]


def adopt(row: "Row") -> None:
    """Copies to a row's cache what lies below its first block: there it is as its base."""
    slot, base = row.slot, row.prefix
    if slot is None or base is None:
        return
    end = len(base.tokens)
    if row.extent.first >= end or slot.first >= end:
        return
    for layer in range(row.extent.start):
        held = slot.cache.layer(layer, end - slot.first, base.keys[layer])
        for cached, known in zip(held, (base.keys[layer], base.values[layer]), strict=True):
            cached[slot.number, : end - slot.first] = known[slot.first : end]


def store(segment: "Segment", layer: int, key: Tensor, value: Tensor) -> None:
    """Appends keys and values [rows, positions computed, K, d] to the caches of those rows that have one."""
    for cache, members in _caches(segment).items():
        start = segment.positions.start - cache.first
        stop = segment.positions.stop - cache.first
        if start < 0:
            continue
        rows, numbers = zip(*members, strict=True)
        for held, new in zip(cache.layer(layer, stop, key), (key, value), strict=True):
            held[_index(numbers), start:stop] = new if len(rows) == len(segment.members) else new[_index(rows)]


def gather(segment: "Segment", layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, own positions, K, d] of rows that all have a cache."""
    caches = _caches(segment)
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    for cache, members in caches.items():
        rows, numbers = zip(*members, strict=True)
        keys, values = (held[_index(numbers), : segment.length] for held in cache.layer(layer, segment.length, like))
        if len(caches) == 1:
            return keys, values
        parts.update((row, (keys[place], values[place])) for place, row in enumerate(rows))
    ordered = [parts[row] for row in range(len(segment.members))]
    return torch.stack([keys for keys, _ in ordered]), torch.stack([values for _, values in ordered])


def _caches(segment: "Segment") -> dict[KeyValueCache, list[tuple[int, int]]]:
    """By cache: the rows of a segment that it serves, each with the number of its slot."""
    found: dict[KeyValueCache, list[tuple[int, int]]] = defaultdict(list)
    for number, row in enumerate(segment.members):
        if row.slot is not None:
            found[row.slot.cache].append((number, row.slot.number))
    return found


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """An index for these numbers; neighbours are a slice, which copies nothing."""
    first = numbers[0]
    if list(numbers) == list(range(first, first + len(numbers))):
        return slice(first, first + len(numbers))
    return list(numbers)
