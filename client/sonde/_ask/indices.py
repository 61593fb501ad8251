"""Arguments for layers, units and positions: one index or several."""

import operator
from collections.abc import Iterable
from typing import Final, SupportsIndex, TypeAlias

import numpy as np

from sonde.errors import InvalidRequest

Indices: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
"""One index or several; None means the contract's default, which is usually all."""


_INT32: Final = range(-(2**31), 2**31)


def indices(given: Indices, name: str) -> tuple[int, ...]:
    """Return the indices as a tuple; None becomes an empty one.

    Raises:
        InvalidRequest: if an entry is not an integer, or for an empty list, which the contract would read as "all".
    """
    if given is None:
        return ()
    several = given if isinstance(given, Iterable) else (given,)
    found = tuple(index(entry, name) for entry in several)
    if not found:
        raise InvalidRequest.at(name, "expected at least one index, got an empty list; leave it out to select all")
    return found


def index(given: SupportsIndex, name: str) -> int:
    """Return the value as an integer that fits the contract's 32 bits.

    Raises:
        InvalidRequest: if it is anything else, including a boolean.
    """
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool | np.bool_) or number not in _INT32:
        raise InvalidRequest.at(name, f"expected a 32-bit integer, got {given!r}")
    return number
