"""Where a run that is continued keeps its keys and values: room that grows by one position with each token."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# How many positions of room a cache gets beyond those it needs at first.
ROOM = 32


class KeyValueCache:
    """Keys and values of several runs from position `first` on, [slots, positions, K, d] for each layer.

    Positions are appended in place. When the room is used up it is doubled, so that on average a position is copied at
    most twice. `limit`: the most positions that will ever be held.
    """

    def __init__(self, slots: int, first: int, limit: int) -> None:
        self.slots = slots
        self.first = first
        self.limit = limit
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, layer: int, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, with room for at least `positions`; new room is made like `like` [..., K, d]."""
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
    """A slot for each of several runs, whose own keys begin at these positions and end before `end`.

    Runs whose keys begin at the same position share a cache, in their order, so that attention can read it in place.
    """
    counts: dict[int, int] = defaultdict(int)
    numbers = []
    for first in firsts:
        numbers.append(counts[first])
        counts[first] += 1
    caches = {first: KeyValueCache(count, first, end - first) for first, count in counts.items()}
    return [Slot(caches[first], number) for first, number in zip(firsts, numbers, strict=True)]
