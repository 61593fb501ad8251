"""What a run has to compute: from which block, and which positions. Known before anything runs.

An edit in block l at position p leaves every block below l and every position before p as they were in the
base. So a run restarts at its lowest touched block, from its first touched position, and goes no further than
the last position that is read or edited. In its last block, only what is looked at there or above goes through
the queries and the MLP. A captured place counts as touched: where no shortcut applies, more is computed, never
something else.

A position of a run's first block counts whole, also where the run joins inside it and shares the part before with
others (engine/midblock.py): which runs share a batch is not known before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .places import LAYERLESS, PAIRWISE, Component

# What is kept of every base run: reading it runs nothing.
KEPT = (
    Component.TOKEN_EMBEDDING,
    Component.RESIDUAL_PRE,
    Component.RESIDUAL_POST,
    Component.KEY,
    Component.VALUE,
)


class Place(Protocol):
    """One component of one layer at some positions: an edit, or a value that is read."""

    @property
    def component(self) -> Component:
        """Which activation."""

    @property
    def layer(self) -> int:
        """In which block; 0 for a component that takes no layer."""

    @property
    def positions(self) -> tuple[int, ...]:
        """At which positions."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Blocks from `start` to before `stop`, positions from `first` to before `end`; of the last block, `last`."""

    start: int
    stop: int
    first: int
    end: int
    last: tuple[int, ...]

    @property
    def token_layers(self) -> int:
        """Positions that go through queries and MLP, summed over the blocks."""
        return (self.end - self.first) * max(0, self.stop - self.start - 1) + len(self.last) * (self.stop > self.start)

    @classmethod
    def whole(cls, layers: int, tokens: int, first: int = 0) -> "Extent":
        """Every block, and every position from `first`."""
        return cls(0, layers, first, tokens, tuple(range(first, tokens)))


def first_block(place: Place, layers: int) -> int:
    """The block that has to be run again when this place is touched; `layers` stands for the final norm."""
    component = place.component
    if component is Component.TOKEN_EMBEDDING:
        return 0
    if component in (Component.FINAL_NORM, Component.LOGITS):
        return layers
    return place.layer + 1 if component is Component.RESIDUAL_POST else place.layer


def extent_of(
    edits: Iterable[Place],
    captures: Iterable[Place],
    read: int | None,
    tokens: int,
    layers: int,
    *,
    continued: bool = False,
) -> Extent:
    """What a run computes. `read`: the position that is read; `continued`: tokens are generated after it."""
    places: list[Place] = [*edits, *captures]
    places = [place for place in places if place.positions]
    touched = [position for place in places for position in place.positions]
    looked_at = ({read} if read is not None else set()) | ({tokens - 1} if continued else set())
    touched.extend(looked_at)
    if not touched:
        return Extent(layers, layers, 0, 0, ())
    start = min((first_block(place, layers) for place in places), default=layers)
    # A pattern may be made to look at later positions, and scores are shown against all keys.
    end = tokens if any(place.component in PAIRWISE for place in places) else max(touched) + 1
    stop = layers if looked_at else max(first_block(place, layers) + _runs_its_block(place) for place in places)
    last = {position for place in places if _seen(place, stop) for position in place.positions}
    last |= looked_at
    return Extent(start, stop, min(touched), end, tuple(sorted(last)))


def _seen(place: Place, stop: int) -> bool:
    """Whether the place lies behind the keys and values of the last of `stop` blocks, or above."""
    match place.component:
        case Component.FINAL_NORM | Component.LOGITS:
            return True
        case Component.RESIDUAL_PRE:
            return place.layer == stop
        case Component.TOKEN_EMBEDDING | Component.KEY | Component.VALUE:
            return False
    return place.layer == stop - 1


def _runs_its_block(place: Place) -> bool:
    """Whether the place lies inside a block; the stream before and after one is there without running it."""
    outside = (Component.RESIDUAL_PRE, Component.RESIDUAL_POST, *LAYERLESS)
    return place.component not in outside


def rereading(captures: Iterable[Place], tokens: int, layers: int) -> Extent:
    """What the run computes that reads, of a base run, what is not kept of it."""
    return extent_of((), [one for one in captures if one.component not in KEPT], None, tokens, layers)
