"""The largest values of activations over cases, and where they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...questions.answers import Floats, Integers
from .moments import Rows, by_row

# The low half of a number of 64 bits.
LOW = 0xFFFFFFFF
# About how many values are compared at a time: a few units of them, which stay in the cache.
CHUNK = 1 << 19


class Listed(NamedTuple):
    """Values of every unit, with their cases and positions: [units, n] each."""

    values: Floats
    cases: Integers
    positions: Integers

    def cut(self, units: slice) -> "Listed":
        """Those of some units."""
        return Listed(self.values[units], self.cases[units], self.positions[units])


class Largest:
    """The `most` largest values of every row and unit. Of equal values the earlier ones are kept, and listed first."""

    def __init__(self, rows: int, shape: tuple[int, ...], most: int) -> None:
        self._most = most
        self._shape = shape
        units = int(np.prod(shape, dtype=np.int64))
        none = np.empty((units, 0), np.int32)
        self._found = [Listed(none.astype(np.float32), none, none)] * rows
        self._waiting: list[tuple[Floats, Rows, int, Integers]] = []

    def add(self, values: Floats, rows: Rows, case: int, positions: Integers) -> None:
        """Adds values [n, ...] of a case, each with its row and position. They are compared later."""
        if len(values):
            self._waiting.append((values, rows, case, positions))

    def fold(self) -> None:
        """Compares the values that wait."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        order, places = by_row([rows for _, rows, _, _ in waiting], len(self._found))
        values = np.concatenate([values.reshape(len(values), -1) for values, _, _, _ in waiting])[order]
        lengths = [len(values) for values, _, _, _ in waiting]
        cases = np.repeat(np.array([case for _, _, case, _ in waiting], np.int32), lengths)[order]
        positions = np.concatenate([positions for _, _, _, positions in waiting])[order]
        for row, place in places:
            self._join(row, values[place], cases[place], positions[place])

    def read(self) -> Listed:
        """The largest values, [rows, ..., listed] each. A row with fewer ends with 0 of case -1 and position -1."""
        self.fold()
        listed = max((found.values.shape[1] for found in self._found), default=0)

        def whole(parts: Sequence[Floats | Integers], empty: int) -> NDArray[Any]:
            filled = [np.pad(part, ((0, 0), (0, listed - part.shape[1])), constant_values=empty) for part in parts]
            return np.stack(filled).reshape(len(filled), *self._shape, listed)

        values, cases, positions = zip(*self._found, strict=True)
        return Listed(whole(values, 0), whole(cases, -1), whole(positions, -1))

    def _join(self, row: int, values: Floats, cases: Integers, positions: Integers) -> None:
        """Joins values [n, units] of a row, with the case and position of each n, with the largest before them."""
        old = self._found[row]
        step = max(1, CHUNK // (self._most + len(values)))
        cuts = [slice(first, first + step) for first in range(0, len(old.values), step)]
        found = [self._joined(old.cut(cut), values[:, cut], cases, positions) for cut in cuts]
        self._found[row] = Listed(*map(np.concatenate, zip(*found, strict=True)))

    def _joined(self, old: Listed, values: Floats, cases: Integers, positions: Integers) -> Listed:
        if old.values.shape[1] == self._most:
            new = _above(old.values[:, -1], values, cases, positions)
        else:
            new = Listed(values.T, *(np.broadcast_to(one, values.T.shape) for one in (cases, positions)))
        joined = [np.concatenate(pair, 1) for pair in zip(old, new, strict=True)]
        chosen = _order(joined[0])[:, : self._most]
        return Listed(*(np.take_along_axis(one, chosen, 1) for one in joined))


def _above(least: Floats, values: Floats, cases: Integers, positions: Integers) -> Listed:
    """The values [n, units] above a unit's `least`: few, once many have been seen. A unit of fewer is filled up."""
    number, unit = np.divmod(np.flatnonzero(values > least), len(least))
    order = np.argsort(unit, kind="stable")
    number, unit = number[order], unit[order]
    counts = np.bincount(unit, minlength=len(least))
    column = np.arange(len(unit)) - (np.cumsum(counts) - counts)[unit]
    shape = len(least), int(counts.max(initial=0))
    found = Listed(np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    found.values[unit, column] = values[number, unit]
    found.cases[unit, column], found.positions[unit, column] = cases[number], positions[number]
    return found


def _order(values: Floats) -> NDArray[np.int64]:
    """The columns of each row of values from the largest to the smallest, equal ones in their order.

    A float's bits, read as an integer, are in the order of the floats, but that of negative ones is turned around. With
    the column below them they are sorted several times faster than floats are by a stable sort.
    """
    # Adding 0 makes -0 the same as 0.
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)
    keys = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32 | (LOW - np.arange(values.shape[1]))
    keys.sort(axis=1)
    return LOW - (keys[:, ::-1] & LOW)
