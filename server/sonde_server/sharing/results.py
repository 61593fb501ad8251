"""The results of runs, in their order: laid out a window at a time, and queued a portion at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ..engine import Result
from ..engine.layout import Row
from ..engine.memory import Memory
from .jobs import Portion

# Runs that are laid out together, so that those which share positions also share a batch.
WINDOW = 4096
# Portions of one question that may be queued or running: the next is ready when one ends.
AHEAD = 2

Submit = Callable[[list[Row], bool], Portion]
"""Queues rows; the second argument says whether they are a part of a sweep, which shares no batch."""


class Results:
    """The results of rows, in their order. The first window is laid out at once, each further one when it is needed.

    `finished` is told how many rows were computed.
    """

    def __init__(self, rows: Iterable[Row], memory: Memory, submit: Submit, finished: Callable[[int], None]) -> None:
        self._rows = iter(rows)
        self._memory = memory
        self._submit = submit
        self._finished = finished
        self._window = self._lay_out()

    def submit(self) -> None:
        """Queue the first portions now, before any result is asked for."""
        if self._window is not None:
            self._window.submit()

    async def take(self, count: int) -> list[Result]:
        """The next `count` results; fewer at the end."""
        taken: list[Result] = []
        while self._window is not None:
            taken += await self._window.take(count - len(taken))
            if len(taken) == count:
                break
            self._window = None  # frees its rows before the next are made
            self._window = self._lay_out()
        return taken

    def _lay_out(self) -> "_Window | None":
        rows = list(islice(self._rows, WINDOW))
        return _Window(rows, self._memory, self._submit, self._finished) if rows else None


class _Window:
    """Runs that are laid out together, cut into portions."""

    def __init__(self, rows: list[Row], memory: Memory, submit: Submit, finished: Callable[[int], None]) -> None:
        self._rows = rows
        self._memory = memory
        self._submit = submit
        self._finished = finished
        order = sorted(range(len(rows)), key=lambda number: (*rows[number].group, rows[number].extent.start))
        cut = list(self._cut(order))
        # The portions of a sweep share no batches, so that other questions do not change the results of its runs.
        self._sweep = len(cut) > 1
        self._portions = iter(cut)
        self._pending: deque[tuple[list[int], Portion]] = deque()
        self._ready: set[int] = set()
        self._following = 0

    async def take(self, count: int) -> list[Result]:
        """The next results. The next portion is queued when those of an earlier one have been taken."""
        taken: list[Result] = []
        while len(taken) < count:
            if self._following in self._ready:
                row = self._rows[self._following]
                taken.append(row.result)
                row.result = Result()
                self._following += 1
                continue
            self.submit()
            if not self._pending:
                break
            numbers, portion = self._pending.popleft()
            await portion.done()
            self._finished(len(numbers))
            self._ready.update(numbers)
        return taken

    def submit(self) -> None:
        """Queue as many portions as may wait."""
        while len(self._pending) < AHEAD and (numbers := next(self._portions, None)) is not None:
            portion = self._submit([self._rows[number] for number in numbers], self._sweep)
            self._pending.append((numbers, portion))

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        """Cut runs, in this order, to what the device computes at once."""
        budget = self._memory.batch_bytes
        portion: list[int] = []
        size = 0.0
        for number in order:
            needed = self._memory.row_bytes(self._rows[number])
            if portion and size + needed > budget:
                yield portion
                portion, size = [], 0.0
            portion.append(number)
            size += needed
        if portion:
            yield portion
