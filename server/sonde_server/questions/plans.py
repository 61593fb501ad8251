"""Which runs an Intervene asks for."""

import enum
from dataclasses import dataclass

from .edits import Edit


class Axis(enum.IntEnum):
    """An axis of a sweep."""

    LAYER = 1
    UNIT = 2
    POSITION = 3


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits made together in one run."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One run per layer x unit x position, the last axis fastest; the axes are resolved."""

    edit: Edit
    layers: tuple[int, ...]
    units: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    together: frozenset[Axis]
    layer_window: int
    always: tuple[Edit, ...]
