"""What a question has for the model and has not sent yet.

A question by itself sends each job at once, with what it held back to go with the next. The cases of one question send
in rounds: what they have for the model is held until it is worth a batch, and then shares one. When a round is sent
depends on what is held and on what was waited for, never on how fast the model is; so the same cases get the same bits.
"""

from collections import deque
from collections.abc import Callable, Sequence

from ..engine.memory import Memory
from .jobs import Call, Job, Portion, Round

Put = Callable[[Sequence[Job]], None]


class Outbox:
    """The jobs of a question by itself."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._held: list[Job] = []

    @property
    def empty(self) -> bool:
        """Whether nothing is held."""
        return not self._held

    def hold(self, job: Job) -> None:
        """Keep a job, to be sent with the next one."""
        self._held.append(job)

    def add(self, job: Job) -> None:
        """Send a job, and what is held before it."""
        self.hold(job)
        self.send()

    def send(self) -> None:
        """Send what is held."""
        self._put(self._held)
        self._held = []

    def fail(self, error: BaseException) -> None:
        """Fail what is held."""
        for job in self._held:
            job.fail(error)


class Rounds(Outbox):
    """The jobs of many cases: sent when they are worth a batch, or when nothing else can go on."""

    def __init__(self, put: Put, memory: Memory) -> None:
        super().__init__(put)
        self._memory = memory
        self._budget = memory.batch_bytes
        self._size = 0.0
        self._sent: deque[deque[Job]] = deque()
        self._open: set[Job] = set()

    def hold(self, job: Job) -> None:
        """Keep a job. What is held is sent before it would exceed a batch, and at once if it fills one."""
        size = self._size_of(job)
        if job.joins and self._held and self._size + size > self._budget:
            self._send_round()
        super().hold(job)
        self._open.add(job)
        self._size += size
        if self._size >= self._budget:
            self._send_round()

    def add(self, job: Job) -> None:
        """Keep a job, as `hold` does."""
        self.hold(job)

    def send(self) -> None:
        """Send nothing: who advances the cases decides when."""

    # ------------------------------------------------------------ for who advances the cases

    def is_open(self, job: Job) -> bool:
        """Whether a job of these cases has not been waited for."""
        return job in self._open

    def expect(self, job: Job) -> None:
        """Wait for another question's job too, once everything that was sent before has been waited for."""
        if job not in self._open:
            self._send_round()
            self._open.add(job)
            self._sent.append(deque([job]))

    def send_some(self) -> None:
        """Send what is held if the model would have nothing to do, or else only if it is worth a batch of its own.

        Every batch reads all weights. So while a round is under way, another has to be half a batch at least.
        """
        if not self._sent or (len(self._sent) == 1 and self._size >= self._budget / 2):
            self._send_round()

    def oldest(self) -> Job:
        """The job that was sent first, which must now be waited for."""
        jobs = self._sent[0]
        job = jobs.popleft()
        if not jobs:
            self._sent.popleft()
        self._open.discard(job)
        return job

    def _send_round(self) -> None:
        if not self._held:
            return
        mates = [job for job in self._held if isinstance(job, Portion) and job.joins]
        if mates:
            # Beside others only if it is small, as any portion.
            small = self._memory.may_pass(sum(one.size for one in mates), sum(one.work for one in mates))
            shared = Round(alone=not small or any(one.alone for one in mates))
            for portion in mates:
                portion.round = shared
        # Together first, so that they are neighbours in the queue: nothing that joins builds on what does not.
        jobs = [*mates, *(job for job in self._held if not job.joins)]
        self._put(jobs)
        self._sent.append(deque(jobs))
        self._held, self._size = [], 0.0

    def _size_of(self, job: Job) -> float:
        """How much of a batch a job is worth, in bytes."""
        if isinstance(job, Portion):
            return job.size
        assert isinstance(job, Call)
        if job.positions is None:
            return self._budget
        return self._budget * job.positions / self._memory.batch_positions
