"""Arguments for layers, units and positions: one index or several."""

import operator
from collections.abc import Iterable
from typing import SupportsIndex, TypeAlias, cast

import numpy as np

from sonde._ask.given import shown
from sonde.errors import InvalidRequest

Indices: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
"""One index or several; None means the contract's default, which is usually all."""


def indices(given: Indices, name: str) -> tuple[int, ...]:
    """Return the indices as a tuple; None becomes an empty one.

    Raises:
        InvalidRequest: if an entry is not an integer, or for an empty list, which the contract would read as "all".
    """
    if given is None:
        return ()
    # An array without axes has no entries: it is one index.
    single = not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0
    several = (cast("SupportsIndex", given),) if single else cast("Iterable[SupportsIndex]", given)
    found = tuple(index(entry, name) for entry in several)
    if not found:
        raise InvalidRequest.at(name, "expected at least one index, got an empty list; leave it out to select all")
    return found


def index(given: SupportsIndex, name: str, bits: int = 32) -> int:
    """Return the value as an integer that fits the bits that the contract has for it.

    Raises:
        InvalidRequest: if it is anything else, including a boolean.
    """
    try:
        number = operator.index(given)
    except (TypeError, ValueError, RuntimeError):  # Each library refuses in its own way.
        number = None
    if number is None or isinstance(given, bool | np.bool_) or not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise InvalidRequest.at(name, f"expected a {bits}-bit integer, got {shown(given)}")
    return number
