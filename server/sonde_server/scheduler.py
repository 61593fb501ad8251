"""One thread owns the model; callers take turns, batch by batch.

A session cuts its question's runs into batches and hands in the next only when an earlier answer has been taken,
so a long sweep holds a few batches at most, and a slow reader slows nobody else. The model thread serves the
callers round robin: a small question waits for the batch under way and one of each other caller, never for a sweep.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

from .engine import Base, Engine, Result, Run, State
from .engine.layout import Row
from .errors import Busy, NotServing, Stopped
from .statistics import Statistics, device_memory

T = TypeVar("T")
# Runs that are looked at together, so that those which share positions also share a batch.
WINDOW = 4096
# Batches of one session that may be queued or running: the next is ready when one ends.
AHEAD = 2


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T], session: "Session") -> None:
        self.work = work
        self.session = session
        self.future: Future[T] = Future()

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.session.check()
            self.future.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            self.future.set_exception(error)


class Scheduler:
    """The thread that owns the model, and the queue before it."""

    def __init__(
        self, engine: Engine, *, max_waiting: int = 1024, on_batch: Callable[[int], None] = lambda rows: None
    ) -> None:
        """`on_batch` is told, on the model's thread, how many runs each batch had."""
        self.engine = engine
        self.on_batch = on_batch
        self.rows = 0
        self.token_layers_saved = 0
        self.max_waiting = max_waiting
        self._queues: OrderedDict[str, deque[_Job[object]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    def session(self, *, caller: str, cancelled: threading.Event, deadline: float | None = None) -> "Session":
        """What one request computes through; `deadline` as time.monotonic() gives it."""
        return Session(self, caller, cancelled, deadline)

    def enqueue(self, job: _Job[object]) -> None:
        """Queues a job behind its caller's others. Raises Busy when the queue is full, NotServing when closed."""
        with self._changed:
            if self._closed:
                raise NotServing("the server is shutting down")
            waiting = sum(len(queue) for queue in self._queues.values())
            if waiting >= self.max_waiting:
                raise Busy(f"{waiting} batches are waiting, and the queue holds {self.max_waiting}", retry_after=1.0)
            self._queues.setdefault(job.session.caller, deque()).append(job)
            self._changed.notify()

    def drop(self, session: "Session") -> None:
        """Forgets what a session has queued."""
        with self._changed:
            for caller, queue in list(self._queues.items()):
                kept = deque(job for job in queue if job.session is not session)
                for job in queue:
                    if job.session is session:
                        job.future.cancel()
                if kept:
                    self._queues[caller] = kept
                else:
                    del self._queues[caller]

    def statistics(self) -> Statistics:
        """What was done so far, and what waits."""
        with self._changed:
            waiting = sum(len(queue) for queue in self._queues.values())
        engine = self.engine
        device_bytes, device_total_bytes = device_memory(engine.decoder.device)
        return Statistics(
            waiting_runs=waiting,
            batches=engine.work.batches,
            rows=self.rows,
            token_layers=engine.work.token_layers,
            token_layers_saved=self.token_layers_saved,
            cache_hits=engine.hits,
            cache_misses=engine.misses,
            cache_bytes=engine._held,  # noqa: SLF001
            device_bytes=device_bytes,
            device_total_bytes=device_total_bytes,
        )

    def execute(self, rows: list[Row], stopped: Callable[[], bool]) -> list[Result]:
        """One batch, counted. On the model's thread."""
        results = self.engine.execute(rows, stopped)
        self.rows += len(rows)
        self.token_layers_saved += sum(len(row.tokens) * self.engine.layers - row.extent.token_layers for row in rows)
        self.on_batch(len(rows))
        return results

    def stop(self) -> None:
        """Ends the thread after the batch under way; whatever still waits is cancelled."""
        with self._changed:
            self._closed = True
            for queue in self._queues.values():
                for job in queue:
                    job.future.cancel()
            self._queues.clear()
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            job.do()

    def _next(self) -> _Job[object] | None:
        """The next caller's next job; that caller then goes to the end of the line."""
        with self._changed:
            while not self._queues and not self._closed:
                self._changed.wait()
            if not self._queues:
                return None
            caller, queue = self._queues.popitem(last=False)
            job = queue.popleft()
            if queue:
                self._queues[caller] = queue
            return job


class Session:
    """One request's way to the engine."""

    def __init__(self, scheduler: Scheduler, caller: str, cancelled: threading.Event, deadline: float | None) -> None:
        self.scheduler = scheduler
        self.engine = scheduler.engine
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

    def call(self, work: Callable[[], T]) -> T:
        """Does `work` on the model thread. Raises Stopped when the caller goes away meanwhile."""
        return self._wait(self._submit(work))

    def states(self, bases: Sequence[Base]) -> list[State]:
        """The states of base runs, from the cache where they are in it."""
        return self.call(lambda: self._states(bases))

    def run(self, runs: Iterable[Run]) -> Iterator[Result]:
        """The results of runs, in their order; only a window of runs is held at a time."""
        source = iter(runs)
        while window := list(islice(source, WINDOW)):
            rows = [self.engine.run_row(run) for run in window]
            order = sorted(range(len(rows)), key=lambda number: (*rows[number].group, rows[number].extent.start))
            done: dict[int, Result] = {}
            pending: deque[tuple[list[int], Future[list[Result]]]] = deque()
            batches = self._batches(rows, order)
            following = 0
            while True:
                while len(pending) < AHEAD and (batch := next(batches, None)) is not None:
                    pending.append((batch, self._submit_rows([rows[number] for number in batch])))
                if not pending:
                    break
                numbers, future = pending.popleft()
                results = self._wait(future)
                done.update(zip(numbers, results, strict=True))
                while following in done:
                    yield done.pop(following)
                    following += 1

    def _submit_rows(self, rows: list[Row]) -> "Future[list[Result]]":
        return self._submit(lambda: self.scheduler.execute(rows, self.stopped))

    def _batches(self, rows: list[Row], order: list[int]) -> Iterator[list[int]]:
        """Cuts runs, in this order, to the engine's batch size; a run costs its tokens, and one for its reading."""
        batch: list[int] = []
        size = 0
        for number in order:
            length = rows[number].length + 1
            if batch and size + length > self.engine.batch_tokens:
                yield batch
                batch, size = [], 0
            batch.append(number)
            size += length
        if batch:
            yield batch

    def _states(self, bases: Sequence[Base]) -> list[State]:
        engine = self.engine
        known = [engine.cached(base) for base in bases]
        missing: list[tuple[int, Row]] = []
        for number, (base, state) in enumerate(zip(bases, known, strict=True)):
            if state is None:
                clean = self._states([Base(base.tokens)])[0] if base.corruption is not None else None
                missing.append((number, engine.base_row(base, clean)))
        for number, row in missing:
            # One at a time: a base does not depend, not even in its last bit, on what is computed beside it.
            engine.execute([row], self.stopped)
            assert row.state is not None
            known[number] = row.state
            engine.keep(bases[number], row.state)
        return [state for state in known if state is not None]

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        self.check()
        job = _Job(work, self)
        self.scheduler.enqueue(job)  # type: ignore[arg-type]
        return job.future

    def _wait(self, future: "Future[T]") -> T:
        try:
            remaining = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            return future.result(remaining)
        except TimeoutError as error:
            raise Stopped("the deadline passed") from error
        except CancelledError as error:
            raise NotServing("the server is shutting down") from error
