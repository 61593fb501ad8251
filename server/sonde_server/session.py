"""A request's share of the model: hands in runs and takes results, as fast as they are read."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar, cast

from .engine import Base, Engine, Reading, Result, Run, State
from .engine.layout import Row
from .errors import Stopped
from .scheduler import Call, Job, Portion, Scheduler

T = TypeVar("T")
J = TypeVar("J", bound=Job)
# Runs that are looked at together, so that those which share positions also share a batch.
WINDOW = 4096
# Portions of one session that may be queued or running: the next is ready when one ends.
AHEAD = 2


class Session:
    """Everything that one request has the model do. As a context manager it forgets what is left at the end."""

    def __init__(self, scheduler: Scheduler, caller: str, cancelled: threading.Event, deadline: float | None) -> None:
        self.scheduler = scheduler
        self.engine: Engine = scheduler.engine
        self.caller = caller
        self.cancelled = cancelled
        self.deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancelled.set()
        self.scheduler.drop(self)

    def stopped(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancelled.is_set() or (self.deadline is not None and time.monotonic() >= self.deadline)

    def check(self) -> None:
        """Raises Stopped when nobody waits any more."""
        if self.stopped():
            raise Stopped("the caller went away")

    def admit(self, runs: int, *, bases: Sequence[int] = (), run_bytes: int = 0) -> None:
        """Asks for room: so many runs, base runs of so many tokens each, so many bytes of results a run.

        Raises InvalidQuestion when that could never be, Busy when it cannot be now.
        """
        held = sum(map(self.engine.memory.state_bytes, bases)) + min(runs, WINDOW) * run_bytes
        self.scheduler.admit(self, runs, held)

    def call(self, work: Callable[[], T]) -> T:
        """Does `work` on the model thread. Raises Stopped when the caller goes away meanwhile."""
        return cast("T", self._wait(self._submit(Call(self, work))))

    def states(self, bases: Sequence[Base], *, read: int | None = None) -> list[State]:
        """The states of base runs, from the cache where they are in it; `read`: where they will be read."""
        found = [self.engine.cache.find(base) for base in bases]
        missing: list[tuple[int, Row]] = []
        for number, base in enumerate(bases):
            if found[number] is None:
                clean = self.states([Base(base.tokens)])[0] if base.corruption is not None else None
                row = self.engine.base_row(base, clean)
                row.reads = (read,) if read is not None and read in row.positions else ()
                missing.append((number, row))
        if missing:
            self._wait(self._submit(self._portion([row for _, row in missing])))
        for number, row in missing:
            assert row.state is not None
            found[number] = row.state
            self.engine.cache.keep(bases[number], row.state)
        return [state for state in found if state is not None]

    def read(self, states: Sequence[State], reading: Reading) -> list[Result]:
        """What is read of base runs as they are; where their logits are kept, nothing is computed for it."""
        if all(reading.position in state.logits for state in states):
            return self.engine.read(states, reading)
        return self.call(lambda: self.engine.read(states, reading))

    def run(self, runs: Iterable[Run]) -> Iterator[Result]:
        """The results of runs, in their order; only a window of runs is held at a time."""
        source = iter(runs)
        while window := list(islice(source, WINDOW)):
            rows = [self.engine.run_row(run) for run in window]
            order = sorted(range(len(rows)), key=lambda number: (*rows[number].group, rows[number].extent.start))
            ready = [False] * len(rows)
            following = 0
            pending: deque[tuple[list[int], Portion]] = deque()
            portions = self._portions(rows, order)
            while True:
                while len(pending) < AHEAD and (numbers := next(portions, None)) is not None:
                    pending.append((numbers, self._submit(self._portion([rows[number] for number in numbers]))))
                if not pending:
                    break
                numbers, portion = pending.popleft()
                self._wait(portion)
                self.scheduler.progress(self, len(numbers))
                for number in numbers:
                    ready[number] = True
                while following < len(rows) and ready[following]:
                    yield rows[following].result
                    rows[following].result = Result()
                    following += 1

    def _portions(self, rows: list[Row], order: list[int]) -> Iterator[list[int]]:
        """Cuts runs, in this order, to what the device computes at once."""
        budget = self.engine.memory.batch_bytes()
        portion: list[int] = []
        size = 0
        for number in order:
            needed = self.engine.memory.row_bytes(rows[number])
            if portion and size + needed > budget:
                yield portion
                portion, size = [], 0
            portion.append(number)
            size += needed
        if portion:
            yield portion

    def _portion(self, rows: list[Row]) -> Portion:
        for row in rows:
            row.abandoned = self.stopped
        return Portion(self, rows)

    def _submit(self, job: J) -> J:
        self.check()
        self.scheduler.enqueue(job)
        return job

    def _wait(self, job: Job) -> object:
        try:
            remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            return job.future.result(remaining)
        except TimeoutError as error:
            raise Stopped("the deadline passed") from error
