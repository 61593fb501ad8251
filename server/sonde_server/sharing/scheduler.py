"""One thread owns the model; the runs of many callers share its batches.

A session cuts its question's runs into portions and hands in the next only when an earlier answer has been taken,
so a long sweep holds a few batches at most, and a slow reader slows nobody else. The model thread fills each
batch from all callers who wait, an equal share each, and what is left over in turn: a small question is in the
next batch, beside the sweep of somebody else.
"""

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, cast

import torch

from ..engine import Engine
from ..engine.layout import Row
from ..errors import InvalidQuestion, NotServing, QueueFull, Stopped, Violation
from .bases import Bases
from .statistics import Statistics, device_memory

if TYPE_CHECKING:
    from .session import Session

# What a caller is told to wait before asking again, in seconds.
RETRY_AFTER = 1.0
# How long a thread may hold the interpreter while others want it; Python's own 5 ms made a small question 8% slower.
SWITCH_SECONDS = 0.0005


def leave_the_cores_to_the_model() -> None:
    """From now on no thread but the model's, which has begun, computes with several; for processes of our own alone.

    Nor does one hold the interpreter for long: the model's gives it away with every operation, and waits to get it back
    while another reads a request or writes an answer.
    """
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_SECONDS)


class Job:
    """Something that a session waits for."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.future: Future[object] = Future()

    def fail(self, error: BaseException) -> None:
        """Tells who waits; a second failure of the same job is none."""
        if not self.future.done():
            self.future.set_exception(error)


class Call(Job):
    """Work that has the model to itself."""

    def __init__(self, session: "Session", work: Callable[[], object]) -> None:
        super().__init__(session)
        self._work = work

    def do(self) -> None:
        """Does it, on the thread that calls."""
        try:
            self.session.check()
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            self.fail(error)
        else:
            self.future.set_result(result)


class Portion(Job):
    """Rows that are waited for together; the model may take them in several batches.

    Those `apart` share a batch with others only where another session waits too. So what a lone caller gets does
    not depend, not even in its last bit, on what is in the cache of base runs.
    """

    def __init__(self, session: "Session", rows: list[Row], *, apart: bool = False) -> None:
        super().__init__(session)
        self.apart = apart
        self.waiting = deque(rows)
        self._unfinished = len(rows)

    def finished(self, row: Row) -> None:
        """Counts a row that was computed, or dropped because its session stopped."""
        self._unfinished -= 1
        if row.dropped:
            self.fail(Stopped("the caller went away"))
        elif not self._unfinished and not self.future.done():
            self.future.set_result(None)


Queue = OrderedDict[str, OrderedDict["Session", deque[Job]]]


class Scheduler:
    """The thread that owns the model, and the queue before it.

    `max_queued_runs`: runs of all accepted questions that are not done yet; `max_queued_bytes`: what these
    questions hold in memory, by default half of the device's.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        *,
        max_queued_runs: int = 1_000_000,
        max_queued_bytes: int | None = None,
        on_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        """Waits for `make`, and raises what it raises. `on_batch` is told how many runs each batch had.

        Both are called on the model's thread. Every thread that computes gets a pool of its own from OpenMP, and once
        there are more of them than cores each small operation waits for a worker to wake up: so nothing of the model
        is computed anywhere else, not even while it is loaded.
        """
        self._on_batch = on_batch
        self._batches = self._rows = self._saved = 0
        self._queue: Queue = OrderedDict()
        self._admitted: dict[Session, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._closed = False
        made: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._own, args=(make, made), name="model", daemon=True)
        self._thread.start()
        try:
            self.engine = made.result()
        except BaseException:
            # Whoever waited was interrupted, perhaps: then the thread goes once it has made the engine.
            self._closed = True
            raise
        self.bases = Bases(self.engine.cache)
        self.max_queued_runs = max_queued_runs
        self.max_queued_bytes = self.engine.memory.capacity() if max_queued_bytes is None else max_queued_bytes

    @property
    def queued_runs(self) -> int:
        """Runs of accepted questions that are not done yet."""
        with self._changed:
            return sum(runs for runs, _ in self._admitted.values())

    def statistics(self) -> Statistics:
        """What was done so far, and what waits."""
        engine = self.engine
        device_bytes, device_total_bytes = device_memory(engine.decoder.device)
        return Statistics(
            waiting_runs=self.queued_runs,
            batches=self._batches,
            rows=self._rows,
            token_layers=engine.work.token_layers,
            token_layers_saved=self._saved + engine.layers * engine.cache.positions_saved,
            cache_hits=engine.cache.hits,
            cache_misses=engine.cache.misses,
            cache_bytes=engine.cache.bytes,
            device_bytes=device_bytes,
            device_total_bytes=device_total_bytes,
        )

    def session(
        self,
        *,
        caller: str,
        cancelled: threading.Event,
        deadline: float | None = None,
        runs: int = 0,
        held: int = 0,
    ) -> "Session":
        """What one request computes through; `deadline` as time.monotonic() gives it.

        It asks for room for so many runs and held bytes when it is entered, as `admit` does.
        """
        from .session import Session

        return Session(self, caller, cancelled, deadline, (runs, held))

    # ------------------------------------------------------------ admission

    def admit(self, session: "Session", runs: int, held: int) -> None:
        """Accepts a question of so many runs, that holds so many bytes while it lasts.

        Raises InvalidQuestion when it could never be, QueueFull when it cannot be now.
        """
        with self._changed:
            others = [admitted for one, admitted in self._admitted.items() if one is not session]
            for asked, allowed, taken, what in (
                (runs, self.max_queued_runs, sum(one[0] for one in others), "runs"),
                (held, self.max_queued_bytes, sum(one[1] for one in others), "bytes of kept activations"),
            ):
                if asked > allowed:
                    raise InvalidQuestion([Violation("prompt", f"takes {asked:,} {what}; at most {allowed:,} fit")])
                if asked + taken > allowed:
                    text = f"this takes {asked:,} {what}; {taken:,} of {allowed:,} are taken by others now"
                    raise QueueFull(text, RETRY_AFTER, asked=asked, allowed=allowed)
            self._admitted[session] = (runs, held)

    def progress(self, session: "Session", runs: int) -> None:
        """So many of a session's runs are done."""
        with self._changed:
            if session in self._admitted:
                left, held = self._admitted[session]
                self._admitted[session] = (max(0, left - runs), held)

    # ------------------------------------------------------------ the queue

    def enqueue(self, jobs: Iterable[Job]) -> None:
        """Queues jobs behind their session's others, all at once. Raises NotServing when closed."""
        with self._changed:
            if self._closed:
                raise NotServing("the server is shutting down")
            for job in jobs:
                sessions = self._queue.setdefault(job.session.caller, OrderedDict())
                sessions.setdefault(job.session, deque()).append(job)
            self._changed.notify()

    def drop(self, session: "Session") -> None:
        """Forgets a session and what it has queued."""
        with self._changed:
            self._admitted.pop(session, None)
            sessions = self._queue.get(session.caller, OrderedDict())
            for job in sessions.pop(session, ()):
                job.fail(Stopped("the caller went away"))
            if not sessions:
                self._queue.pop(session.caller, None)

    def stop(self) -> None:
        """Ends the thread after the batch under way; whatever still waits is turned away."""
        with self._changed:
            self._closed = True
            for sessions in self._queue.values():
                for jobs in sessions.values():
                    for job in jobs:
                        job.fail(NotServing("the server is shutting down"))
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------ the model's thread

    def _own(self, make: Callable[[], Engine], made: "Future[Engine]") -> None:
        try:
            engine = make()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            made.set_exception(error)
            return
        made.set_result(engine)
        # What was abandoned meanwhile is not kept alive by this frame.
        del engine, made
        self._serve()

    def _serve(self) -> None:
        while (turn := self._next()) is not None:
            if isinstance(turn, Call):
                turn.do()
            else:
                self._compute(turn)

    def _compute(self, batch: list[tuple[Portion, Row]]) -> None:
        try:
            self.engine.execute([row for _, row in batch])
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            portions = list(dict.fromkeys(portion for portion, _ in batch))
            if len(portions) == 1:
                portions[0].fail(error)
                return
        else:
            self._batches += 1
            self._rows += len(batch)
            self._on_batch(len(batch))
            for portion, row in batch:
                self._saved += len(row.tokens) * self.engine.layers - row.extent.token_layers
                portion.finished(row)
            return
        # What went wrong is one caller's, and nobody knows whose: each alone.
        for portion in portions:
            self._compute([(one, row) for one, row in batch if one is portion])

    def _next(self) -> Call | list[tuple[Portion, Row]] | None:
        """The next caller's work; rows in company. That caller then goes to the end of the line."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return None
            caller = next(iter(self._queue))
            session, jobs = next(iter(self._queue[caller].items()))
            head = jobs[0]
            turn: Call | list[tuple[Portion, Row]]
            if isinstance(head, Call):
                jobs.popleft()
                turn = head
            else:
                turn = list(self._fill())
            self._rotate(caller, session)
            return turn

    def _fill(self) -> Iterator[tuple[Portion, Row]]:
        """Takes a batch's rows: first each session's share, then what is left over in turn."""
        left = budget = self.engine.memory.batch_bytes
        taken = 0
        lines = [(len(sessions), jobs) for sessions in self._queue.values() for jobs in sessions.values()]
        alone = cast("Portion", lines[0][1][0]) if len(lines) == 1 else None
        for share in (budget / len(self._queue), budget):
            for sharing, jobs in lines:
                mine = share / sharing if share < budget else budget
                while jobs and isinstance(head := jobs[0], Portion):
                    if alone is not None and head is not alone and (head.apart or alone.apart):
                        break
                    size = self.engine.memory.row_bytes(head.waiting[0])
                    # A row that fits nowhere else has a batch of its own.
                    if taken and size > min(mine, left):
                        break
                    yield head, head.waiting.popleft()
                    taken, left, mine = taken + 1, left - size, mine - size
                    if not head.waiting:
                        jobs.popleft()

    def _rotate(self, caller: str, session: "Session") -> None:
        for name, sessions in list(self._queue.items()):
            for one in [one for one, jobs in sessions.items() if not jobs]:
                del sessions[one]
            if not sessions:
                del self._queue[name]
        if caller in self._queue:
            self._queue.move_to_end(caller)
            if session in self._queue[caller]:
                self._queue[caller].move_to_end(session)
