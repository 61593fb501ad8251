"""One thread owns the model; the runs of many callers share its batches.

A session cuts its question's runs into portions and queues the next only when an earlier answer has been taken. So a
long sweep holds a few batches at most, and a slow reader slows nobody else.
"""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

import torch

from ..engine import Engine
from .backlog import Backlog
from .bases import Bases
from .jobs import Call
from .queue import Batch, Queue
from .session import Session, Shared
from .statistics import Statistics, device_memory

# How long a thread may keep the interpreter while others want it. Python's default of 5 ms made a small question 8 %
# slower.
SWITCH_SECONDS = 0.0005


def leave_the_cores_to_the_model() -> None:
    """From now on only the model's thread, which must have started, computes with several cores.

    Threads also release the interpreter sooner: the model's thread releases it with every operation, and has to get it
    back while others read requests and write answers. Only for processes that belong to the server.
    """
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_SECONDS)


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
        """Wait for `make`, and raise what it raises. `on_batch` is called with the number of runs of each batch.

        Both are called on the model's thread. OpenMP gives every thread that computes a pool of its own, and once
        there are more pool threads than cores each small operation waits for one to wake up. So nothing of the model
        is computed on another thread, not even while it is loaded.
        """
        self._on_batch = on_batch
        self._batches = self._rows = self._saved = 0
        self._ready: Future[Queue] = Future()
        made: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._own, args=(make, made), name="model", daemon=True)
        self._thread.start()
        try:
            self.engine = made.result()
            memory = self.engine.memory
            self.queue = Queue(memory)
            self.backlog = Backlog(max_queued_runs, memory.capacity() if max_queued_bytes is None else max_queued_bytes)
        except BaseException:
            # If this thread was interrupted, the other one ends once it has made the engine.
            self._ready.cancel()
            raise
        self._shared = Shared(self.engine, self.queue, self.backlog, Bases(self.engine.cache))
        self._ready.set_result(self.queue)

    @property
    def queued_runs(self) -> int:
        """Runs of accepted questions that are not done yet."""
        return self.backlog.runs

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
    ) -> Session:
        """The session through which one question computes; `deadline` as time.monotonic() gives it.

        When it is entered, it asks for room for `runs` runs and `held` bytes, as `Backlog.admit` does.
        """
        return Session(self._shared, caller, cancelled, deadline, (runs, held))

    def stop(self) -> None:
        """End the thread after the batch that is running; whatever still waits fails with NotServing."""
        self.queue.close()
        self._thread.join()

    # ------------------------------------------------------------ the model's thread

    def _own(self, make: Callable[[], Engine], made: "Future[Engine]") -> None:
        try:
            engine = make()
        except BaseException as error:  # noqa: BLE001 - any error belongs to whoever waits
            made.set_exception(error)
            return
        made.set_result(engine)
        # What was abandoned meanwhile is not kept alive by this frame.
        del engine, made
        try:
            queue = self._ready.result()
        except CancelledError:
            return
        while (turn := queue.next()) is not None:
            self._take(turn)

    def _take(self, turn: Call | Batch) -> None:
        if isinstance(turn, Call):
            turn.do()
        else:
            self._compute(turn)

    def _compute(self, batch: Batch) -> None:
        try:
            self._execute(batch)
        except BaseException as error:  # noqa: BLE001 - any error belongs to those who wait
            portions = batch.portions
            if len(portions) == 1:
                portions[0].fail(error)
                return
        else:
            return
        # The error is one question's, and it is unknown whose: compute each portion by itself.
        for portion in portions:
            self._compute(Batch([(one, row) for one, row in batch.members if one is portion]))

    def _execute(self, batch: Batch) -> None:
        if batch.alone:
            self.engine.execute(batch.rows, partial(self._let_pass, batch))
        else:
            self.engine.execute(batch.rows)
        self._batches += 1
        self._rows += len(batch.members)
        self._on_batch(len(batch.members))
        for portion, row in batch.members:
            self._saved += len(row.tokens) * self.engine.layers - row.extent.token_layers
            portion.finished(row)

    def _let_pass(self, running: Batch, done: int) -> None:
        """Execute small work that waits, between two blocks of a running batch."""
        running.reached(done)
        turn = self.queue.passing(running, done)
        if not isinstance(turn, Batch):
            if turn is not None:
                turn.do()
            return
        try:
            self._execute(turn)
        except torch.OutOfMemoryError:
            # It may fit once the running batch has ended.
            self.queue.put_back(turn)
            running.allowance = 0
        except BaseException:  # noqa: BLE001 - computed again, each portion by itself, to find out whose error it is
            self._compute(turn)
