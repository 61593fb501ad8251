"""Changes of activations."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .places import Site

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scale:
    """x -> factor * x."""

    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Set:
    """x -> values."""

    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """x -> x + values."""

    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Multiply:
    """x -> x * values."""

    values: Values


@dataclass(frozen=True, slots=True)
class Patch:
    """x -> its value in the unchanged runs of these sources, averaged.

    `positions`, by source, pair with the site's. None: the same as in the prompt.
    `layer`: the layer in the sources. None: the site's own.
    """

    sources: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...] | None = None
    layer: int | None = None

    def layer_for(self, layer: int) -> int:
        """The layer of the sources whose values go to this layer of the prompt."""
        return layer if self.layer is None else self.layer


@dataclass(frozen=True, slots=True)
class Noise:
    """x -> x + standard_deviation * RandomState(seed).randn(shape selected)."""

    standard_deviation: float
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """x -> x less its part along `direction`, over the last axis."""

    direction: Values


@dataclass(frozen=True, slots=True)
class Knockout:
    """The site's queries do not attend to these keys; None stands for all keys."""

    keys: tuple[int, ...] | None = None


Operation = Scale | Set | Add | Multiply | Patch | Noise | ProjectOut | Knockout


@dataclass(frozen=True, slots=True)
class Path:
    """Which reads of the residual stream see a change, and through what (graph.py). Sites without positions: all."""

    receivers: tuple[Site, ...]
    through: tuple[Site, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one site. `path` None: all that comes after sees it."""

    site: Site
    operation: Operation
    path: Path | None = None
