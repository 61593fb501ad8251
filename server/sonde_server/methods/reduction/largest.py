"""The largest values of activations over cases, and where they are."""

import numpy as np
from numpy.typing import NDArray

from ...questions.answers import Floats, Integers
from .moments import Rows, by_row

# The low half of a number of 64 bits.
LOW = 0xFFFFFFFF


class Largest:
    """The `most` largest values of every row and unit. Of equal values the earlier ones are kept, and listed first."""

    def __init__(self, rows: int, shape: tuple[int, ...], most: int) -> None:
        self._most = most
        self._shape = shape
        # By row: values, cases and positions [units, listed].
        units = int(np.prod(shape, dtype=np.int64))
        self._found: list[tuple[Floats, Integers, Integers]] = [
            (np.empty((units, 0), np.float32), np.empty((units, 0), np.int32), np.empty((units, 0), np.int32))
            for _ in range(rows)
        ]
        self._values: list[Floats] = []
        self._rows: list[Rows] = []
        self._places: list[Integers] = []

    def add(self, values: Floats, rows: Rows, case: int, positions: Integers) -> None:
        """Adds values [n, ...] of a case, each with its row and position. They are compared later."""
        if len(values):
            self._values.append(values)
            self._rows.append(rows)
            self._places.append(np.stack([np.full_like(positions, case), positions]))

    def fold(self) -> None:
        """Compares the values that wait."""
        if not self._values:
            return
        order, places = by_row(self._rows, len(self._found))
        values, where = np.concatenate(self._values)[order], np.concatenate(self._places, 1)[:, order]
        for row, place in places:
            self._join(row, values[place].reshape(len(values[place]), -1).T, where[:, place])
        self._values, self._rows, self._places = [], [], []

    def read(self) -> tuple[Floats, Integers, Integers]:
        """Values, cases and positions, [rows, ..., listed]. A row with fewer ends with 0 of case and position -1."""
        self.fold()
        listed = max((found[0].shape[1] for found in self._found), default=0)

        def whole(part: int, empty: int) -> NDArray[np.generic]:
            filled = [
                np.pad(found[part], ((0, 0), (0, listed - found[part].shape[1])), constant_values=empty)
                for found in self._found
            ]
            return np.stack(filled).reshape(len(filled), *self._shape, listed)

        return whole(0, 0).astype(np.float32), whole(1, -1).astype(np.int32), whole(2, -1).astype(np.int32)

    def _join(self, row: int, new: Floats, where: Integers) -> None:
        values = np.concatenate([self._found[row][0], new], 1)
        chosen = _order(values)[:, : self._most]
        joined = [
            np.concatenate([old, np.broadcast_to(one, new.shape)], 1)
            for old, one in zip(self._found[row][1:], where, strict=True)
        ]
        cases, positions = (np.take_along_axis(one, chosen, 1) for one in joined)
        self._found[row] = np.take_along_axis(values, chosen, 1), cases, positions


def _order(values: Floats) -> NDArray[np.int64]:
    """The columns of each row of finite values from the largest to the smallest, equal ones in their order.

    A float's bits, read as an integer, are in the order of the floats, but that of negative ones is turned around. With
    the column below them they are sorted several times faster than floats are by a stable sort.
    """
    # Adding 0 makes -0 the same as 0.
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)
    keys = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32 | (LOW - np.arange(values.shape[1]))
    keys.sort(axis=1)
    return LOW - (keys[:, ::-1] & LOW)
