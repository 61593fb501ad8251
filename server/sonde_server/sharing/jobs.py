"""What waits for the model: calls and portions of rows, each on behalf of one question."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import coroutine
from typing import Protocol

from ..engine import Base, State
from ..engine.layout import Row
from ..errors import Stopped


class Owner(Protocol):
    """The question that a job belongs to. The queue tells owners apart by identity."""

    @property
    def caller(self) -> str:
        """Who asked the question."""

    def stopped(self) -> bool:
        """Whether nobody waits for the answer any more."""

    def check(self) -> None:
        """Raises Stopped when nobody waits for the answer any more."""

    def reached(self, runs: int) -> None:
        """Learns that a portion that is being computed is as far as if this many of its runs were done."""


class Job:
    """A piece of work on the model. `future` is set when it is done.

    `joins`: whether it may share a batch with jobs of its question's other cases.
    """

    joins = False

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.future: Future[object] = Future()

    @coroutine
    def done(self) -> "Generator[Job, None, object]":
        """Wait for it: its result. Whoever drives what awaits this is handed the job (driving.py)."""
        yield self
        return self.future.result()

    def fail(self, error: BaseException) -> None:
        """Passes an error to whoever waits for the job. Only the first one counts."""
        if not self.future.done():
            self.future.set_exception(error)


class Call(Job):
    """A function that has the model to itself.

    `positions`: how many positions through all blocks take as long, if that is known and few; such a call may pass a
    large batch.
    """

    def __init__(self, owner: Owner, work: Callable[[], object], positions: int | None = None) -> None:
        super().__init__(owner)
        self.positions = positions
        self._work = work

    def do(self) -> None:
        """Calls the function on the current thread."""
        try:
            self.owner.check()
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - any error belongs to the question that asked
            self.fail(error)
        else:
            self.future.set_result(result)


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """Portions of several cases of one question that share a batch, `alone` or beside other questions."""

    alone: bool


class Portion(Job):
    """Rows whose results are awaited together; the model may compute them in several batches.

    `sizes`: the bytes of each row; `size` and `work`: those of all, and positions x blocks. A portion that is `alone`
    shares no batch with other questions: neither a large one nor any portion of a sweep, so that others do not change
    the results of its runs, not even in the last bit. With the rest of its own question it shares a batch only if both
    are of one `round`. So the results of a small question with no others beside it do not depend on which base runs
    are in the cache.
    """

    def __init__(
        self, owner: Owner, rows: Sequence[Row], sizes: Sequence[float], *, joins: bool = False, alone: bool = False
    ) -> None:
        super().__init__(owner)
        self.joins = joins
        self.round: Round | None = None
        self.size = sum(sizes)
        self.work = sum(row.extent.token_layers for row in rows)
        self.runs = self._unfinished = len(rows)
        self.waiting = deque(zip(rows, sizes, strict=True))
        self._alone = alone

    @property
    def alone(self) -> bool:
        """Whether it shares no batch with other questions."""
        return self._alone if self.round is None else self.round.alone

    def with_mine(self, other: "Portion") -> bool:
        """Whether it may share a batch with another portion of its question."""
        return self is other or (self.round is not None and self.round is other.round)

    def finished(self, row: Row) -> None:
        """Counts a row that was computed, or dropped because nobody waits for it."""
        self._unfinished -= 1
        if row.dropped:
            self.fail(Stopped("the caller went away"))
        elif not self._unfinished and not self.future.done():
            self.future.set_result(None)


@dataclass(frozen=True, slots=True, eq=False)
class Starting:
    """A base run that is queued, or will be with its question's next job."""

    base: Base
    state: State
    portion: Portion
