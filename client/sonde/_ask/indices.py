"""What a person writes for layers, units and positions: one index, or several."""

import operator
from collections.abc import Iterable
from typing import Final, SupportsIndex, TypeAlias

import numpy as np

from sonde.errors import InvalidRequest

Indices: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
"""One index, or several; None leaves the choice to the contract, which mostly means all."""


_INT32: Final = range(-(2**31), 2**31)


def indices(given: Indices, name: str) -> tuple[int, ...]:
    """The indices given, as a tuple; None gives an empty one.

    Raises:
        InvalidRequest: for what is not an integer, and for an empty list, which the contract would take for all.
    """
    if given is None:
        return ()
    several = given if isinstance(given, Iterable) else (given,)
    found = tuple(index(entry, name) for entry in several)
    if not found:
        raise InvalidRequest.at(name, "it is empty; name at least one, or leave it out")
    return found


def index(given: SupportsIndex, name: str) -> int:
    """The integer given, in the contract's 32 bits.

    Raises:
        InvalidRequest: for anything else, booleans included.
    """
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool | np.bool_) or number not in _INT32:
        raise InvalidRequest.at(name, f"{given!r} was given; a 32-bit integer would do")
    return number
