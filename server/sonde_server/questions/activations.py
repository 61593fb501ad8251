"""What are the activations?"""

import enum
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from .answers import Answer, Floats, Integers
from .costs import Cost, state_bytes
from .extents import Restarts, rereading, token_layers
from .places import PAIRWISE, Place, Site, Sized
from .prompts import Asked


class Encoding(enum.IntEnum):
    """How activations leave, numbered as the contract's data types."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is Encoding.FLOAT32 else 2

    @property
    def beyond(self) -> float:
        """The smallest size of a number that it rounds to infinity."""
        # Halfway between the largest number and the power of two after it, which is the even one of the two.
        return {Encoding.FLOAT32: math.inf, Encoding.BFLOAT16: (2 - 2**-8) * 2.0**127, Encoding.FLOAT16: 65520.0}[self]


class Pooling(enum.IntEnum):
    """How the positions of a row are joined, numbered as in the contract."""

    NONE = 0
    MEAN = 1
    MAX = 2


def numbers_read(sites: Iterable[Site], pooling: Pooling, tokens: int, model: Sized) -> int:
    """How many numbers are answered of these sites in a prompt of `tokens`, over all their layers."""
    if pooling is Pooling.NONE:
        return sum(model.numbers(site, tokens) for site in sites)
    return sum(numbers_of_rows(site, len(site.row_sizes(tokens)), model) for site in sites)


def numbers_of_rows(site: Site, rows: int, model: Sized) -> int:
    """How many numbers `rows` positions or rows of a site have, over all its layers."""
    return len(site.layers) * prod(model.selected_shape(site.component, site.units, rows, 1))


@dataclass(frozen=True, slots=True)
class Activations:
    """The values at these sites, pooled over the positions of each row and encoded as asked."""

    sites: tuple[Site, ...]
    encoding: Encoding = Encoding.FLOAT32
    pooling: Pooling = Pooling.NONE

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are read."""
        return any(site.component in PAIRWISE for site in self.sites)

    def runs(self, _asked: Asked, _model: Sized) -> int:
        """The unchanged run."""
        return 1

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """Every value."""
        return self.encoding.bytes * numbers_read(self.sites, self.pooling, asked.tokens, model)

    def restarts(self, asked: Asked, model: Sized) -> Restarts:
        """Each layer is read by itself; what is not kept of it is run again."""
        by_layer: dict[int, list[Place]] = defaultdict(list)
        for site in self.sites:
            for place in site.places(asked.tokens):
                by_layer[place.layer].append(place)
        return Counter(rereading(places, asked.tokens, model.layers, asked.sight) for places in by_layer.values())

    def cost(self, asked: Asked, model: Sized, restarts: Restarts) -> Cost:
        """The cost before anything runs."""
        full = asked.tokens * model.layers
        total = full * (1 + sum(restarts.values()))
        return Cost(1, full + token_layers(restarts), total, self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """The state of the unchanged run. Values leave as they are read."""
        return state_bytes(asked.tokens, model)


@dataclass(frozen=True, slots=True, eq=False)
class Activation(Answer):
    """One whole activation of one run (-1: the unchanged one), at the site of this index and one layer.

    `values` is float32 [positions, ...], or where they are pooled [rows, ...]; it leaves in `encoding`.
    `counts`: of a reduction, how many values each row is over.
    """

    run: int
    site: int
    layer: int
    values: Floats
    encoding: Encoding = Encoding.FLOAT32
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class LargestActivations(Answer):
    """The largest values of one activation over cases: [rows, units..., listed], with their cases and positions.

    Of equal values the earlier ones are listed, and first. A row of fewer values than another is filled up with 0 of
    case -1 and position -1.
    """

    run: int
    site: int
    layer: int
    values: Floats
    cases: Integers
    positions: Integers
