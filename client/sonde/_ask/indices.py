"""What a person writes for layers, units and positions: one index, or several."""

import operator
from collections.abc import Iterable
from typing import SupportsIndex, TypeAlias, cast

import numpy as np

from sonde._ask.given import shown
from sonde.errors import InvalidRequest

Indices: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
"""One index, or several; None leaves the choice to the contract, which mostly means all."""


def indices(given: Indices, name: str) -> tuple[int, ...]:
    """The indices given, as a tuple; None gives an empty one.

    Raises:
        InvalidRequest: for what is not an integer, and for an empty list, which the contract would take for all.
    """
    if given is None:
        return ()
    # An array without axes has no entries: it is one index.
    single = not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0
    several = (cast("SupportsIndex", given),) if single else cast("Iterable[SupportsIndex]", given)
    found = tuple(index(entry, name) for entry in several)
    if not found:
        raise InvalidRequest.at(name, "it is empty; name at least one, or leave it out")
    return found


def index(given: SupportsIndex, name: str, bits: int = 32) -> int:
    """The integer given, in as many bits as the contract has for it.

    Raises:
        InvalidRequest: for anything else, booleans included.
    """
    try:
        number = operator.index(given)
    except (TypeError, ValueError, RuntimeError):  # Each library refuses in its own way.
        number = None
    if number is None or isinstance(given, bool | np.bool_) or not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise InvalidRequest.at(name, f"expected an integer of {bits} bits, got {shown(given)}")
    return number
