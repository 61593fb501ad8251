"""Means and deviations over cases, in memory that does not grow with their number.

Values are added in batches, each of which has its mean and its sum of squared deviations from that; two of these join
exactly (Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...questions.answers import Floats, Statistic

Doubles = NDArray[np.float64]
Rows = NDArray[np.intp]


def by_row(rows: list[Rows], count: int) -> tuple[Rows | slice, Iterator[tuple[int, slice]]]:
    """The order that brings values of the same row together, as they came, and each row's place in that order."""
    if count == 1:
        return slice(None), iter([(0, slice(None))])
    joined = np.concatenate(rows)
    order = np.argsort(joined, kind="stable")
    bounds = np.searchsorted(joined[order], np.arange(count + 1)).tolist()
    places = ((row, slice(bounds[row], bounds[row + 1])) for row in range(count) if bounds[row] < bounds[row + 1])
    return order, places


class Moments:
    """The mean and the squared deviations of values [...], by row."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        self.counts = np.zeros(rows, np.int64)
        self._means: Doubles = np.zeros((rows, *shape))
        self._squares: Doubles = np.zeros((rows, *shape))
        self._values: list[Floats] = []
        self._rows: list[Rows] = []

    def add(self, values: Floats, rows: Rows) -> None:
        """Adds values [n, ...], each to its row. They are summed up later."""
        if values.shape[1:] != self._means.shape[1:]:
            raise ValueError(f"expected numbers of shape {self._means.shape[1:]}, got {values.shape[1:]}")
        if len(values):
            self._values.append(values)
            self._rows.append(rows)

    def fold(self) -> None:
        """Sums up the values that wait."""
        if not self._values:
            return
        order, places = by_row(self._rows, len(self.counts))
        values = np.concatenate(self._values)[order]
        for row, place in places:
            self._join(row, values[place])
        self._values, self._rows = [], []

    def read(self, statistic: Statistic) -> Floats:
        """A statistic of every row, [rows, ...]; 0 where there are no values."""
        self.fold()
        if statistic is Statistic.MEAN:
            return self._means.astype(np.float32)
        counts = np.maximum(1, self.counts).reshape(-1, *[1] * (self._squares.ndim - 1))
        return np.sqrt(self._squares / counts).astype(np.float32)

    def _join(self, row: int, values: Floats) -> None:
        count, before = len(values), int(self.counts[row])
        mean = values.mean(0, dtype=np.float64)
        squares = np.einsum("n...,n...->...", spread := values - mean, spread)
        apart = mean - self._means[row]
        total = before + count
        self._means[row] += apart * (count / total)
        self._squares[row] += squares + apart * apart * (before * count / total)
        self.counts[row] = total
