"""A request's share of the model: hands in runs and takes results, as fast as they are read."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar, cast

from torch import Tensor

from ..engine import Base, Capture, Engine, Reading, Result, Run, State
from ..engine.cache import key_of
from ..engine.gradients import Descent
from ..engine.layout import Row
from ..errors import Stopped
from ..model.anatomy import Decoder
from ..questions.places import KEPT
from .bases import Starting
from .scheduler import Call, Job, Portion, Scheduler

T = TypeVar("T")
J = TypeVar("J", bound=Job)
# Runs that are looked at together, so that those which share positions also share a batch.
WINDOW = 4096
# Portions of one session that may be queued or running: the next is ready when one ends.
AHEAD = 2


class Session:
    """Everything that one request has the model do. As a context manager it forgets what is left at the end."""

    def __init__(
        self,
        scheduler: Scheduler,
        caller: str,
        cancelled: threading.Event,
        deadline: float | None,
        wanted: tuple[int, int],
    ) -> None:
        self.scheduler = scheduler
        self.engine: Engine = scheduler.engine
        self.caller = caller
        self.cancelled = cancelled
        self.deadline = deadline
        self._wanted = wanted
        self._starting: dict[bytes, Starting] = {}
        self._held: list[Job] = []

    def __enter__(self) -> Self:
        """Raises InvalidQuestion and QueueFull."""
        self.scheduler.admit(self, *self._wanted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancelled.set()
        for key, one in self._starting.items():
            self.scheduler.bases.release(key, one)
        for job in self._held:
            job.fail(Stopped("the caller went away"))
        self.scheduler.drop(self)

    @property
    def decoder(self) -> Decoder:
        """The model."""
        return self.engine.decoder

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return self.engine.layers

    def descent(self, state: State, length: int) -> Descent:
        """The backward pass through the first `length` positions of a base run, block by block."""
        return Descent(self.engine.decoder, self.engine.work, state, length)

    def stopped(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancelled.is_set() or (self.deadline is not None and time.monotonic() >= self.deadline)

    def check(self) -> None:
        """Raises Stopped when nobody waits any more."""
        if self.stopped():
            raise Stopped("the caller went away")

    def call(self, work: Callable[[], T]) -> T:
        """Does `work` on the model thread. Raises Stopped when the caller goes away meanwhile."""
        return cast("T", self.wait(self._submit(Call(self, work))))

    def start(self, base: Base, *, read: int | None = None) -> State:
        """The state of a clean base run, which may still be empty: it is computed with the next that is waited for.

        Runs over it may be handed in at once, and share its batch where others share it too. `read`: where its
        prediction will be read. What another session has begun is waited for.
        """
        key = key_of(base)
        if key in self._starting:
            return self._starting[key].state
        row = self.engine.base_row(base, None)
        row.reads = () if read is None else (read,)
        assert row.state is not None
        mine = Starting(base, row.state, self._portion([row], apart=True))
        while (begun := self.scheduler.bases.claim(key, mine)) is not mine:
            if isinstance(begun, State):
                return begun
            # Nobody waits for another who waits for what is held here.
            if self._held:
                self.send()
            try:
                self.wait(begun.portion)
            except Exception:  # noqa: BLE001 - it belongs to the other one, unless nobody waits here either
                self.check()
                self.scheduler.bases.release(key, begun)
            else:
                return begun.state
        self._starting[key] = mine
        self._hold(mine.portion)
        return row.state

    def ready(self, states: Iterable[State]) -> None:
        """Waits until states have been computed, and keeps them for later questions."""
        wanted = {id(state) for state in states}
        waiting = [(key, one) for key, one in self._starting.items() if id(one.state) in wanted]
        if waiting and self._held:
            self.send()
        for key, one in waiting:
            self.wait(one.portion)
            self.engine.cache.keep(one.base, one.state)
            self.scheduler.bases.release(key, one)
            del self._starting[key]

    def states(self, bases: Sequence[Base], *, read: int | None = None) -> list[State]:
        """The states of clean base runs, from the cache where they are in it; `read`: where they will be read."""
        states = [self.start(base, read=read) for base in bases]
        self.ready(states)
        return states

    def corrupted(self, bases: Sequence[Base], *, read: int) -> list[State]:
        """The states of all corrupted base runs of a question: all from the cache, or all computed together."""
        found = [self.engine.cache.find(base) for base in bases]
        first = min(bases[0].corruption.positions) if bases[0].corruption else 0
        states = [state for state in found if state is not None and (read < first or read in state.logits)]
        if len(states) == len(bases):
            return states
        clean = self.states([Base(bases[0].tokens)])[0]
        rows = [self.engine.base_row(base, clean) for base in bases]
        for row in rows:
            row.reads = (read,) if read in row.positions else ()
        self.wait(self._submit(self._portion(rows, apart=True)))
        states = [row.state for row in rows if row.state is not None]
        for base, state in zip(bases, states, strict=True):
            self.engine.cache.keep(base, state)
        return states

    def values(self, state: State, captures: Sequence[Capture]) -> list[Tensor]:
        """Values of a base run, on the CPU in float32. What is not kept of it is run again, by itself.

        Not beside the base: asking for patterns changes how they are computed, and with it the state's last bits.
        """
        found = {one: self.engine.kept(state, one) for one in captures if one.component in KEPT}
        if missing := tuple(dict.fromkeys(one for one in captures if one not in found)):
            found.update(zip(missing, next(self.run([Run(state, captures=missing)])).captures, strict=True))
        return [found[one] for one in captures]

    def read(self, states: Sequence[State], reading: Reading) -> list[Result]:
        """What is read of base runs as they are; where their logits are kept, nothing is computed for it."""
        if all(reading.position in state.logits for state in states):
            return self.engine.read(states, reading)
        return self.call(lambda: self.engine.read(states, reading))

    def run(self, runs: Iterable[Run], *, at_once: bool = True) -> Iterator[Result]:
        """The results of runs, in their order; only a window of runs is held at a time.

        The first window is laid out now, and `at_once` also handed in; else that waits for who asks for a result.
        """
        source = iter(runs)
        return self._results(source, self._window(source, at_once=at_once))

    def compute(self, rows: list[Row]) -> Iterator[Result]:
        """The results of rows, in their order; `finish` says when runs are done."""
        return _Window(self, rows, counted=False).results() if rows else iter(())

    def finish(self, runs: int) -> None:
        """So many runs are done."""
        self.scheduler.progress(self, runs)

    def _results(self, source: Iterator[Run], window: "_Window | None") -> Iterator[Result]:
        while window is not None:
            yield from window.results()
            window = None  # its rows go before the next are made
            window = self._window(source)

    def _window(self, source: Iterator[Run], *, at_once: bool = True) -> "_Window | None":
        rows = [self.engine.run_row(run) for run in islice(source, WINDOW)]
        if not rows:
            return None
        window = _Window(self, rows)
        if at_once:
            window.submit()
        return window

    def submit(self, rows: list[Row]) -> Portion:
        """Hands in rows."""
        return self._submit(self._portion(rows))

    def _portion(self, rows: list[Row], *, apart: bool = False) -> Portion:
        for row in rows:
            row.abandoned = self.stopped
        return Portion(self, rows, apart=apart)

    def _hold(self, job: J) -> J:
        """Hands a job in with the next one that is sent."""
        self._held.append(job)
        return job

    def _submit(self, job: J) -> J:
        self._hold(job)
        self.send()
        return job

    def send(self) -> None:
        """Hands in what is held, such as a base run that was started. Raises Stopped when nobody waits any more."""
        self.check()
        held, self._held = self._held, []
        self.scheduler.enqueue(held)

    def wait(self, job: Job) -> object:
        """What a job gives. Raises what it raised, and Stopped when the deadline passes meanwhile."""
        try:
            remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            return job.future.result(remaining)
        except TimeoutError as error:
            raise Stopped("the deadline passed") from error


class _Window:
    """So many runs as are looked at together; results come in the order of the runs."""

    def __init__(self, session: Session, rows: list[Row], *, counted: bool = True) -> None:
        self._session = session
        self._counted = counted
        self._rows = rows
        order = sorted(range(len(rows)), key=lambda number: (*rows[number].group, rows[number].extent.start))
        self._portions = self._cut(order)
        self._pending: deque[tuple[list[int], Portion]] = deque()

    def results(self) -> Iterator[Result]:
        """The results; the next portion is handed in when one has been taken."""
        ready: set[int] = set()
        following = 0
        self.submit()
        while self._pending:
            numbers, portion = self._pending.popleft()
            self._session.wait(portion)
            if self._counted:
                self._session.finish(len(numbers))
            ready.update(numbers)
            while following in ready:
                yield self._rows[following].result
                self._rows[following].result = Result()
                following += 1
            self.submit()

    def submit(self) -> None:
        """Hands in as many portions as may wait."""
        while len(self._pending) < AHEAD and (numbers := next(self._portions, None)) is not None:
            portion = self._session.submit([self._rows[number] for number in numbers])
            self._pending.append((numbers, portion))

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        """Cuts runs, in this order, to what the device computes at once."""
        memory = self._session.engine.memory
        budget = memory.batch_bytes
        portion: list[int] = []
        size = 0.0
        for number in order:
            needed = memory.row_bytes(self._rows[number])
            if portion and size + needed > budget:
                yield portion
                portion, size = [], 0.0
            portion.append(number)
            size += needed
        if portion:
            yield portion
