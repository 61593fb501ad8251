"""Advances many cases of one question together, so that their runs share batches.

Each case is answered by a generator of its own, which hands over the job that it waits for. Cases go on in turn; what
they have for the model is sent in rounds (outbox.py). They begin in the order of the request, as soon as those that
have begun leave the model less than a few batches of work, and their answers come one after another in that order. What
happens when depends on the cases alone, never on how fast the model is.
"""

from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import replace

from ..errors import of_case
from ..questions.answers import Answer, CaseAnswer, Progress
from ..questions.cases import Cases, Question, live_bytes
from ..questions.costs import MOST_CONTINUED
from ..questions.interventions import InterveneQuestion
from ..questions.traces import TraceQuestion
from .driving import Steps, abandon, close
from .jobs import Job, Portion
from .session import Session

# A case begins when those before it have less work than this left for the model, in batches: one that is computed, and
# one that is next.
WORK = 2.0
# The most cases that have begun and are not answered yet.
MOST = 1024

Answering = Callable[[Question, Session], AsyncGenerator[Answer, None]]


def advance(cases: Cases[Question], answering: Answering[Question], session: Session) -> Generator[Answer, None, None]:
    """The parts of every case in the order of the cases, each as a CaseAnswer, with the progress of the whole.

    `answering` makes the parts of one case. Raises what a case raises, with its number.
    """
    coming = (_Case(number, one, answering(one, session), session) for number, one in enumerate(cases.questions))
    progress = None if cases.dry_run else Progress(0, cases.runs(session.decoder), True, 0, len(cases.questions))
    advancing = _Advancing(coming, progress, session)
    try:
        yield from advancing.answers()
    finally:
        advancing.close()


class _Case:
    """A case that has begun, or is the next to begin. Its `work` is what it leaves the model to do, in batches."""

    def __init__(
        self,
        number: int,
        question: TraceQuestion | InterveneQuestion,
        answers: AsyncGenerator[Answer, None],
        session: Session,
    ) -> None:
        decoder = session.decoder
        cost = question.cost(decoder)
        self.number = number
        self.runs = cost.runs
        self.held = question.held_bytes(decoder)
        self.answer_bytes = cost.answer_bytes
        self._batch = session.engine.memory.batch_positions * session.layers
        self.work = self._whole = cost.token_layers / self._batch
        self._had = 0.0
        generation = question.readout.generation if isinstance(question, InterveneQuestion) else None
        self._continued = generation is not None
        if generation is not None:
            # Whatever its length, it gives the model a position of each continuation at a time.
            self.work = WORK * generation.continued(self.runs) * generation.samples / MOST_CONTINUED
        self.done = 0.0
        self.ended = False
        self.parts: deque[Answer] = deque()
        self._answers = answers
        self._steps: Steps[Answer] | None = None

    def go_on(self) -> Iterator[Answer | Job]:
        """Its parts up to where it waits for the model, and the job that it waits for; without one it has ended."""
        while True:
            steps = self._steps or anext(self._answers).__await__()
            try:
                self._steps, job = steps, steps.send(None)
            except StopIteration as end:
                self._steps, part = None, end.value
                yield part
            except StopAsyncIteration:
                self._steps, self.ended = None, True
                return
            except BaseException:
                self._steps = None
                raise
            else:
                yield job
                return

    def progressed(self, done: float) -> None:
        """Learns which share of it is done."""
        self.done = max(self.done, done)
        self._left()

    def had(self, job: Job) -> None:
        """Learns that a job is done which it waited for."""
        if isinstance(job, Portion):
            self._had += job.work / self._batch
            self._left()

    def _left(self) -> None:
        # Progress is told with results, which come later than the work is done; but of what was known, none was done.
        if not self._continued:
            self.work = max(0.0, min(self._whole - self._had, self._whole * (1 - self.done)))

    def close(self) -> None:
        """Ends it where it is."""
        if self._steps is not None:
            abandon(self._steps)
        close(self._answers)


class _Advancing:
    """The cases of a question while they are answered."""

    def __init__(self, coming: Iterator[_Case], progress: Progress | None, session: Session) -> None:
        self._session = session
        self._rounds = session.gather()
        self._coming = coming
        self._next = next(coming, None)
        self._live: deque[_Case] = deque()
        self._ready: deque[_Case] = deque()
        self._waiting: dict[Job, list[_Case]] = defaultdict(list)
        self._told = progress
        # Of the cases that have ended: their runs, and how many of them are answered in full.
        self._runs_done = self._answered = 0

    def answers(self) -> Iterator[Answer]:
        """Every part, in the order of the cases, and the progress."""
        if self._told is not None:
            yield self._told
        while True:
            if self._ready:
                yield from self._go_on(self._ready.popleft())
            elif self._next is not None and self._has_room(self._next):
                case, self._next = self._next, next(self._coming, None)
                self._live.append(case)
                yield from self._go_on(case)
            elif self._live:
                self._rounds.send_some()
                self._settle()
            else:
                return

    def close(self) -> None:
        """Ends all cases where they are."""
        for case in self._live:
            case.close()

    def _has_room(self, case: _Case) -> bool:
        """Whether a case may begin beside those that have begun."""
        if not self._live:
            return True
        work = sum(one.work for one in self._live)
        held = sum(one.answer_bytes if one.ended else one.held for one in self._live)
        limit = live_bytes(self._session.decoder.device_type)
        return work < WORK and held + case.held <= limit and len(self._live) < MOST

    def _settle(self) -> None:
        """Waits for the job that was sent first. Whoever waits for it can go on, also with its error."""
        job = self._rounds.oldest()
        self._session.settle(job)
        for case in self._waiting.pop(job, ()):
            case.had(job)
            self._ready.append(case)

    def _go_on(self, case: _Case) -> Iterator[Answer]:
        """Goes on with a case until it waits for the model, or has ended."""
        try:
            for part in case.go_on():
                match part:
                    case Job() as job:
                        self._wait(case, job)
                    case Progress(done, total):
                        case.progressed(done / max(1, total))
                        yield from self._progress()
                    case Answer() if case is self._live[0]:
                        yield CaseAnswer(case.number, part)
                    case Answer():
                        case.parts.append(part)
        except Exception as error:
            raise of_case(error, case.number) from error
        if case.ended:
            case.progressed(1.0)
            case.work = 0.0
            yield from self._deliver()

    def _wait(self, case: _Case, job: Job) -> None:
        if job.owner is not self._session:
            self._rounds.expect(job)
        if self._rounds.is_open(job):
            self._waiting[job].append(case)
        else:
            case.had(job)
            self._ready.append(case)

    def _deliver(self) -> Iterator[Answer]:
        """Answers the first cases, as far as they have ended, and what is known of the one behind them."""
        while self._live:
            case = self._live[0]
            while case.parts:
                yield CaseAnswer(case.number, case.parts.popleft())
            if not case.ended:
                return
            self._live.popleft()
            case.close()
            self._runs_done += case.runs
            self._answered += 1
            yield from self._progress()

    def _progress(self) -> Iterator[Progress]:
        """The progress of the whole, if it is further than what was told last."""
        if self._told is None:
            return
        done = self._runs_done + sum(int(case.done * case.runs) for case in self._live)
        done = max(self._told.done, min(done, self._told.total))
        if (done, self._answered) != (self._told.done, self._told.cases_done):
            self._told = replace(self._told, done=done, cases_done=self._answered)
            yield self._told
