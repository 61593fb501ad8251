"""One question's use of the model: queues runs and takes results, as fast as they are read."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from .backlog import Backlog
from .bases import Bases
from .jobs import Call, Job, Portion, Starting
from .outbox import Outbox, Rounds
from .queue import Queue
from .results import Results

T = TypeVar("T")
J = TypeVar("J", bound=Job)
# How many of the last runs are kept that read values of an unchanged run again, which cases may share.
MOST_READERS = 4


@dataclass(frozen=True, slots=True)
class Shared:
    """What all sessions of a model share."""

    engine: Engine
    queue: Queue
    backlog: Backlog
    bases: Bases


class Session:
    """Everything that one question has the model do. As a context manager it drops what is left at the end."""

    def __init__(
        self,
        shared: Shared,
        caller: str,
        cancelled: threading.Event,
        deadline: float | None,
        wanted: tuple[int, int],
    ) -> None:
        self.engine = shared.engine
        self.caller = caller
        self.cancelled = cancelled
        self.deadline = deadline
        self._shared = shared
        self._wanted = wanted
        self._starting: dict[bytes, Starting] = {}
        self._done = self._reached = 0
        self._outbox = Outbox(self._put)
        self._gathering = False
        # Of many cases, the last runs that read values again.
        self._readers: dict[tuple[int, tuple[Capture, ...]], tuple[Row, Portion]] = {}

    def __enter__(self) -> Self:
        """Raises InvalidQuestion and QueueFull."""
        self._shared.backlog.admit(self, *self._wanted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancelled.set()
        for key, one in self._starting.items():
            self._shared.bases.release(key, one)
        self._outbox.fail(Stopped("the caller went away"))
        self._shared.backlog.drop(self)
        self._shared.queue.drop(self)

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

    async def call(self, work: Callable[[], T], *, positions: int | None = None) -> T:
        """Do `work` on the model's thread. Raises Stopped when the caller goes away meanwhile.

        `positions`: how many positions through all blocks take as long, if that is known and few; then it may pass a
        large batch.
        """
        return cast("T", await self._submit(Call(self, work, positions)).done())

    async def start(self, base: Base, *, read: int | None = None) -> State:
        """Return the state of a clean base run. It may not be computed yet; it will be by the time the next job is.

        Runs over it may be queued at once, and share its batch where others share it too. `read`: where its prediction
        will be read. If another session has begun the same base run, this waits for it.
        """
        key = key_of(base)
        if key in self._starting:
            return self._starting[key].state
        row = self.engine.base_row(base, None)
        row.reads = () if read is None else (read,)
        assert row.state is not None
        mine = Starting(base, row.state, self._portion([row], joins=True))
        while (begun := self._shared.bases.claim(key, mine, later=self._gathering)) is not mine:
            if isinstance(begun, State):
                return begun
            # Send what is held first: the other session may be waiting for it.
            if not self._outbox.empty:
                self.send()
            try:
                await begun.portion.done()
            except Exception:  # noqa: BLE001 - the error belongs to the other session, unless nobody waits here either
                self.check()
                self._shared.bases.release(key, begun)
            else:
                return begun.state
        self.engine.look(row)
        self._starting[key] = mine
        self._outbox.hold(mine.portion)
        return row.state

    async def ready(self, states: Iterable[State]) -> None:
        """Wait until states have been computed, and keep them for later questions."""
        wanted = {id(state) for state in states}
        waiting = [(key, one) for key, one in self._starting.items() if id(one.state) in wanted]
        if waiting and not self._outbox.empty:
            self.send()
        for key, one in waiting:
            await one.portion.done()
            self.engine.cache.keep(one.base, one.state)
            self._shared.bases.release(key, one)
            # Another case may have waited for it too, and a third begun it again.
            if self._starting.get(key) is one:
                del self._starting[key]

    async def states(self, bases: Sequence[Base], *, read: int | None = None) -> list[State]:
        """The states of clean base runs, from the cache if they are there; `read`: where they will be read."""
        states = [await self.start(base, read=read) for base in bases]
        await self.ready(states)
        return states

    async def corrupted(self, bases: Sequence[Base], clean: State, *, read: int) -> list[State]:
        """The states of all corrupted base runs of a question: all from the cache, or all computed together.

        `clean`: the unchanged run of their prompt. They share no batch with other questions, because every run that
        restores something in them inherits their last bits.
        """
        found = [self.engine.cache.find(base) for base in bases]
        first = min(bases[0].corruption.positions) if bases[0].corruption else 0
        states = [state for state in found if state is not None and (read < first or read in state.logits)]
        if len(states) == len(bases):
            return states
        rows = [self.engine.base_row(base, clean) for base in bases]
        for row in rows:
            row.reads = (read,) if read in row.positions else ()
        await self.submit(rows, alone=True).done()
        states = [row.state for row in rows if row.state is not None]
        for base, state in zip(bases, states, strict=True):
            self.engine.cache.keep(base, state)
        return states

    async def values(self, state: State, captures: Sequence[Capture]) -> list[Tensor]:
        """Values of a base run, on the CPU in float32. What is not kept of it is run again, by itself.

        It cannot be captured during the base run: capturing patterns changes how attention is computed, and with it the
        last bits of the state.
        """
        found = {one: self.engine.kept(state, one) for one in captures if one.component in KEPT}
        if missing := tuple(dict.fromkeys(one for one in captures if one not in found)):
            row, portion = self._read_again(state, missing)
            await portion.done()
            found.update(zip(missing, row.result.captures, strict=True))
        return [found[one] for one in captures]

    def _read_again(self, state: State, missing: tuple[Capture, ...]) -> tuple[Row, Portion]:
        """The run that reads them; of a source that several cases share, the same one."""
        key = state.number, missing
        if key in self._readers:
            return self._readers[key]
        row = self.engine.run_row(Run(state, captures=missing))
        # Not beside other questions: runs that are given these values inherit their last bits.
        portion = self.submit([row], alone=True, joins=True)
        if self._gathering:
            self._readers[key] = row, portion
            if len(self._readers) > MOST_READERS:
                del self._readers[next(iter(self._readers))]
        return row, portion

    async def read(self, states: Sequence[State], reading: Reading) -> list[Result]:
        """Read the predictions of base runs; where their logits are kept, nothing is computed on the model's thread."""
        if all(reading.position in state.logits for state in states):
            return self.engine.read(states, reading)
        return await self.call(lambda: self.engine.read(states, reading), positions=len(states))

    def run(self, runs: Iterable[Run], *, at_once: bool = True) -> Results:
        """The results of runs, in their order; only a window of runs is held at a time.

        The first window is laid out now. With `at_once` its first portions are queued now too, otherwise when the first
        result is asked for.
        """
        results = Results(map(self.engine.run_row, runs), self.engine.memory, self._submit_rows, self.finish)
        if at_once:
            results.submit()
        return results

    def compute(self, rows: Iterable[Row]) -> Results:
        """The results of rows, in their order. They do not count as runs that are done; `finish` does that."""
        return Results(rows, self.engine.memory, self._submit_rows, lambda _: None)

    def finish(self, runs: int) -> None:
        """Count runs as done."""
        self._done += runs
        self._reached = 0
        self._shared.backlog.progress(self, runs)

    def reached(self, runs: int) -> None:
        """Learn that a portion that is being computed is as far as if this many of its runs were done."""
        self._reached = runs

    def runs_done(self) -> int:
        """How many runs are done, with those under way counted by their share of the work."""
        return self._done + self._reached

    def submit(self, rows: list[Row], *, alone: bool = False, joins: bool = False) -> Portion:
        """Queue rows. Those that are `alone` share no batch with those of other sessions.

        Those that `joins` may share one with those of the question's other cases.
        """
        return self._submit(self._portion(rows, alone=alone, joins=joins))

    def _submit_rows(self, rows: list[Row], sweep: bool) -> Portion:
        return self.submit(rows, alone=sweep, joins=not sweep)

    def _portion(self, rows: list[Row], *, alone: bool = False, joins: bool = False) -> Portion:
        for row in rows:
            row.abandoned = self.stopped
        memory = self.engine.memory
        sizes = [memory.row_bytes(row) for row in rows]
        small = memory.may_pass(sum(sizes), sum(row.extent.token_layers for row in rows))
        return Portion(self, rows, sizes, joins=joins, alone=alone or not small)

    def gather(self) -> Rounds:
        """From now on, hold the jobs of many cases, which share batches; the result says when they are sent."""
        rounds = Rounds(self._put, self.engine.memory)
        self._outbox, self._gathering = rounds, True
        return rounds

    def _submit(self, job: J) -> J:
        self._outbox.add(job)
        return job

    def send(self) -> None:
        """Queue the jobs that are held, such as a base run that was started. Raises Stopped when nobody waits."""
        self._outbox.send()

    def _put(self, jobs: Sequence[Job]) -> None:
        self.check()
        if self._gathering:
            sent = set(jobs)
            for key, one in self._starting.items():
                if one.portion in sent:
                    self._shared.bases.begin(key, one)
        self._shared.queue.put(jobs)

    def wait(self, job: Job) -> object:
        """The result of a job. Raises what the job raised, and Stopped when the deadline passes meanwhile."""
        self.settle(job)
        return job.future.result()

    def settle(self, job: Job) -> None:
        """Wait until a job is done or has failed. Raises Stopped when the deadline passes meanwhile."""
        try:
            remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            job.future.exception(remaining)
        except TimeoutError as error:
            raise Stopped("the deadline passed") from error
