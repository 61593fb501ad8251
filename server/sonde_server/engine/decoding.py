"""How rows of continued runs use their slots: keys and values are stored there, and gathered for attention.

The positions before a run's first changed one are not in its slot. They are its base's, and all runs over it share
them.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Row, Segment
from .slots import KeyValueCache


def copy_below(row: Row) -> None:
    """Copies to a row's slot the keys and values of the blocks below its first one, which are those of its base."""
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


def store(segment: Segment, layer: int, key: Tensor, value: Tensor) -> None:
    """Appends keys and values [rows, positions computed, K, d] to the slots of those rows that have one."""
    for cache, members in _caches(segment).items():
        start = segment.positions.start - cache.first
        stop = segment.positions.stop - cache.first
        if start < 0:
            continue
        rows, numbers = zip(*members, strict=True)
        for held, new in zip(cache.layer(layer, stop, key), (key, value), strict=True):
            held[_index(numbers), start:stop] = new if len(rows) == len(segment.members) else new[_index(rows)]


def gather(segment: Segment, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, own positions, K, d] of rows that all have a slot."""
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


def _caches(segment: Segment) -> dict[KeyValueCache, list[tuple[int, int]]]:
    """For each cache, the rows of a segment that have a slot in it, each with the number of its slot."""
    found: dict[KeyValueCache, list[tuple[int, int]]] = defaultdict(list)
    for number, row in enumerate(segment.members):
        if row.slot is not None:
            found[row.slot.cache].append((number, row.slot.number))
    return found


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """An index for these numbers; consecutive ones become a slice, which copies nothing."""
    first = numbers[0]
    if list(numbers) == list(range(first, first + len(numbers))):
        return slice(first, first + len(numbers))
    return list(numbers)
