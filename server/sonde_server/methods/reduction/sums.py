"""The sums over cases of one part of their answers."""

from collections.abc import Mapping

from ...questions.answers import Floats, Integers, Statistic
from .largest import Largest, Listed
from .moments import Moments, Rows

Columns = Mapping[str, tuple[Floats, Rows]]
"""By name, values [n, ...] and the row of each."""
# What an array takes beside its numbers while it waits.
ARRAY_BYTES = 256


class Sum:
    """The moments of every column of a part, by row; of activations, the largest values too."""

    def __init__(self, rows: int, columns: Columns, largest: int) -> None:
        self._moments = {name: Moments(rows, values.shape[1:]) for name, (values, _) in columns.items()}
        self._largest = Largest(rows, columns["values"][0].shape[1:], largest) if largest else None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each row is over, once they have been read."""
        return tuple(next(iter(self._moments.values())).counts.tolist())

    def add(self, columns: Columns, case: int, positions: Integers | None) -> int:
        """Adds the numbers of a case. Returns how many bytes wait until they are summed up."""
        waiting = 0
        for name, (values, rows) in columns.items():
            self._moments[name].add(values, rows)
            waiting += values.nbytes + ARRAY_BYTES
        if self._largest is not None and positions is not None:
            self._largest.add(*columns["values"], case, positions)
        return waiting

    def fold(self) -> None:
        """Sums up what waits."""
        for moments in self._moments.values():
            moments.fold()
        if self._largest is not None:
            self._largest.fold()

    def read(self, name: str, statistic: Statistic) -> Floats:
        """A statistic of a column, [rows, ...]."""
        return self._moments[name].read(statistic)

    def largest(self) -> Listed | None:
        """The largest values with their cases and positions, [rows, ..., listed], where they are asked for."""
        return None if self._largest is None else self._largest.read()
