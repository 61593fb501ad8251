"""What a run has to compute: from which block, and which positions. Known before anything runs.

An edit in block l at position p leaves every block below l, and every position before p, as they were in the base. So a
run restarts at the lowest block that it touches, at the first position that it touches. It ends at the last position
that is read or edited. In its last block, only the positions whose values are needed there or above go through the
queries and the MLP. A captured place counts as touched: it may cost work, and never changes a result.

Positions count as whole blocks, also where runs join inside a block and share the part before (engine/midblock.py):
which runs will share a batch is not known yet.

Where positions of an image see one another, a change at one of them reaches all of them, and each needs the others'
keys: then a run computes all of these positions or none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .images import CAUSAL, Sight
from .places import FACTS, KEPT, Component, Stage


class Touched(Protocol):
    """One component of one layer at some positions: an edit, a capture, or a `Place`."""

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


Restarts = Mapping[Extent, int]
"""The runs that restart from what unchanged ones keep: what each kind computes, and how many of it there are."""


def token_layers(restarts: Restarts) -> int:
    """Positions x blocks of all of them."""
    return sum(count * extent.token_layers for extent, count in restarts.items())


def first_block(place: Touched, layers: int) -> int:
    """The lowest block to run again when this place is touched; `layers` stands for the final norm."""
    match FACTS[place.component].stage:
        case Stage.EMBEDDING:
            return 0
        case Stage.END:
            return layers
        case Stage.LEAVING:
            return place.layer + 1
    return place.layer


@dataclass(frozen=True, slots=True)
class Detoured:
    """Where changes of a run leave the stream and where they come back to it (paths): senders, receivers, and between.

    Receivers and the heads of `through` decide where the run restarts. What lies below is as it is in the base, so the
    run does not compute it.
    """

    senders: Sequence[Touched] = ()
    receivers: Sequence[Touched] = ()
    through: Sequence[Touched] = ()

    def places(self, lowest: int, layers: int) -> list[Touched]:
        """Those that a run computes which restarts at block `lowest` for what else it changes or reads."""
        heads = [one for one in self.through if one.component is Component.HEAD_OUT]
        places = [place for place in (*self.receivers, *heads) if place.positions]
        start = min((first_block(place, layers) for place in places), default=lowest)
        others = [one for one in self.through if one.component is not Component.HEAD_OUT]
        start = min(start, lowest)
        return places + [one for one in (*self.senders, *others) if first_block(one, layers) >= start and one.positions]


NO_DETOUR = Detoured()


def extent_of(
    edits: Iterable[Touched],
    captures: Iterable[Touched],
    read: int | None,
    tokens: int,
    layers: int,
    *,
    continued: bool = False,
    detoured: Detoured = NO_DETOUR,
    sight: Sight = CAUSAL,
) -> Extent:
    """What a run computes. `read`: the position that is read; `continued`: tokens are generated after it."""
    places: list[Touched] = [*edits, *captures]
    places = [place for place in places if place.positions]
    if detoured is not NO_DETOUR:
        lowest = min((first_block(place, layers) for place in places), default=layers)
        places += detoured.places(lowest, layers)
    touched = [position for place in places for position in place.positions]
    needed = ({read} if read is not None else set()) | ({tokens - 1} if continued else set())
    touched.extend(needed)
    if not touched:
        return Extent(layers, layers, 0, 0, ())
    start = min((first_block(place, layers) for place in places), default=layers)
    # An edited pattern may attend to later positions, and scores are answered for all keys.
    end = tokens if any(FACTS[place.component].pairwise for place in places) else sight.horizon(max(touched)) + 1
    stop = layers if needed else max(first_block(place, layers) + FACTS[place.component].in_block for place in places)
    last = {position for place in places if _above_keys(place, stop) for position in place.positions}
    last |= needed
    return Extent(start, stop, sight.begins(min(touched)), end, tuple(sorted(last)))


def _above_keys(place: Touched, stop: int) -> bool:
    """Whether the place comes after the keys and values of the last of `stop` blocks, in it or above it."""
    match FACTS[place.component].stage:
        case Stage.END:
            return True
        case Stage.ENTERING:
            return place.layer == stop
        case Stage.EMBEDDING | Stage.KEYS:
            return False
    return place.layer == stop - 1


def rereading(captures: Iterable[Touched], tokens: int, layers: int, sight: Sight = CAUSAL) -> Extent:
    """What the run computes that reads what a base run does not keep."""
    again = [one for one in captures if one.component not in KEPT]
    return extent_of((), again, None, tokens, layers, sight=sight)
