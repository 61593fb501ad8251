"""The queue before the model: fair turns between callers, shared batches, and small questions that pass large batches.

Callers take turns, and so do the questions of one caller. A turn is a call, a portion that is alone, or a batch of
small portions, which is filled from all questions that wait: an equal share for each, and what remains in turn.

Between two blocks of a large batch, small work that waits may pass: it is executed to its end, then the large batch
continues. What the large batch consists of does not change, and so its results do not either.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence

from ..engine.layout import Row
from ..engine.memory import Memory
from ..errors import NotServing, Stopped
from .jobs import Call, Job, Owner, Portion

# A pass through all blocks takes at least as long as one over this many positions: it has to read every weight.
PASS_POSITIONS = 16

Line = deque[Job]


class Batch:
    """Rows that are computed together, each with its portion."""

    def __init__(self, members: Sequence[tuple[Portion, Row]], *, alone: bool = False) -> None:
        self.members = members
        self.alone = alone
        self.work = self.remaining(0)
        # What may still pass this batch, in positions x blocks: never more than its own work in all, so at least half
        # of the time is its own.
        self.allowance = self.work

    @property
    def rows(self) -> list[Row]:
        """The rows."""
        return [row for _, row in self.members]

    @property
    def portions(self) -> list[Portion]:
        """The portions that the rows belong to."""
        return list(dict.fromkeys(portion for portion, _ in self.members))

    @property
    def owners(self) -> set[Owner]:
        """The questions that the rows belong to."""
        return {portion.owner for portion in self.portions}

    def reached(self, done: int) -> None:
        """Tell the owners how far they are when the first `done` blocks of the model are done."""
        share = 1 - self.remaining(done) / max(1, self.work)
        for owner in self.owners:
            owner.reached(int(share * sum(portion.runs for portion in self.portions if portion.owner is owner)))

    def remaining(self, done: int) -> int:
        """Positions x blocks that are left when the first `done` blocks of the model are done."""
        return sum(
            len(row.positions) * max(0, row.extent.stop - max(row.extent.start, done)) for _, row in self.members
        )


class Queue:
    """Jobs that wait, by caller and question. Thread-safe."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._overhead = PASS_POSITIONS * memory.decoder.layers
        self._lines: OrderedDict[str, OrderedDict[Owner, Line]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, jobs: Iterable[Job]) -> None:
        """Append jobs to their questions' lines, all at once. Raises NotServing when closed."""
        with self._changed:
            if self._closed:
                raise NotServing("the server is shutting down")
            for job in jobs:
                self._line(job.owner).append(job)
            self._changed.notify()

    def put_back(self, batch: Batch) -> None:
        """Return a batch's rows to the front of their lines, to be computed later."""
        with self._changed:
            for portion, row in reversed(batch.members):
                if self._closed:
                    portion.fail(NotServing("the server is shutting down"))
                    continue
                portion.waiting.appendleft((row, self._memory.row_bytes(row)))
                line = self._line(portion.owner)
                if not line or line[0] is not portion:
                    line.appendleft(portion)

    def drop(self, owner: Owner) -> None:
        """Forget a question's jobs."""
        with self._changed:
            questions = self._lines.get(owner.caller, OrderedDict())
            for job in questions.pop(owner, ()):
                job.fail(Stopped("the caller went away"))
            if not questions:
                self._lines.pop(owner.caller, None)

    def close(self) -> None:
        """Fail all jobs that wait, and any that come later."""
        with self._changed:
            self._closed = True
            for questions in self._lines.values():
                for line in questions.values():
                    for job in line:
                        job.fail(NotServing("the server is shutting down"))
            self._lines.clear()
            self._changed.notify()

    def next(self) -> Call | Batch | None:
        """Wait for the next turn; that caller then goes to the end. None: the queue was closed."""
        with self._changed:
            while not self._lines and not self._closed:
                self._changed.wait()
            if not self._lines:
                return None
            caller, questions = next(iter(self._lines.items()))
            owner, line = next(iter(questions.items()))
            head = line[0]
            if isinstance(head, Call):
                line.popleft()
                turn: Call | Batch = head
            elif isinstance(head, Portion) and head.alone:
                turn = Batch(list(_cut(line, self._memory.batch_bytes)), alone=True)
            else:
                turn = Batch(list(self._fill()))
            self._tidy()
            if caller in self._lines:
                self._lines.move_to_end(caller)
                if owner in self._lines[caller]:
                    self._lines[caller].move_to_end(owner)
            return turn

    def passing(self, running: Batch, done: int) -> Call | Batch | None:
        """Small work that may pass a running batch, of which the first `done` blocks are done.

        It takes no longer than what remains of the running batch, and fits into memory beside it. It never belongs to a
        question of the running batch, whose own jobs may build on each other.
        """
        with self._changed:
            if not self._lines:
                return None
            limit = min(running.remaining(done), running.allowance) - self._overhead
            owners = running.owners
            lines = [
                line for questions in self._lines.values() for owner, line in questions.items() if owner not in owners
            ]
            turn = self._small_call(lines, limit) or self._small_batch(lines, limit) or self._small_alone(lines, limit)
            self._tidy()
            if turn is not None:
                passed = self._work(turn) if isinstance(turn, Call) else turn.work
                running.allowance -= self._overhead + passed
            return turn

    def _small_call(self, lines: Iterable[Line], limit: int) -> Call | None:
        """Take the first call that takes no longer than `limit` positions x blocks."""
        for line in lines:
            head = line[0]
            if isinstance(head, Call) and head.positions is not None and self._work(head) <= limit:
                line.popleft()
                return head
        return None

    def _work(self, call: Call) -> int:
        return (call.positions or 0) * self._memory.decoder.layers

    def _small_batch(self, lines: Iterable[Line], limit: int) -> Batch | None:
        """Take whole portions, in turn, up to `limit` positions x blocks and to the memory that is kept for them."""
        waiting = [line for line in lines if _shares(line)]
        only = _head(waiting[0]) if len(waiting) == 1 else None
        left = self._memory.passing_bytes
        members: list[tuple[Portion, Row]] = []
        for line in waiting:
            while _shares(line):
                portion = _head(line)
                size = sum(size for _, size in portion.waiting)
                work = sum(row.extent.token_layers for row, _ in portion.waiting)
                if work > limit or size > left or _is_apart(portion, only):
                    break
                members.extend((portion, row) for row, _ in portion.waiting)
                portion.waiting.clear()
                line.popleft()
                left, limit = left - size, limit - work
        return Batch(members) if members else None

    def _small_alone(self, lines: Iterable[Line], limit: int) -> Batch | None:
        """Take the first portion that shares no batch, if it is as small as `_small_batch` asks."""
        for line in lines:
            head = line[0] if line else None
            if isinstance(head, Portion) and head.alone:
                size = sum(size for _, size in head.waiting)
                work = sum(row.extent.token_layers for row, _ in head.waiting)
                if work <= limit and size <= self._memory.passing_bytes:
                    line.popleft()
                    members = [(head, row) for row, _ in head.waiting]
                    head.waiting.clear()
                    return Batch(members)
        return None

    def _fill(self) -> Iterator[tuple[Portion, Row]]:
        """Take the rows of a shared batch: each question's share first, then what remains in turn."""
        budget = left = self._memory.batch_bytes
        callers = [[line for line in questions.values() if _shares(line)] for questions in self._lines.values()]
        callers = [theirs for theirs in callers if theirs]
        lines = [(len(theirs), line) for theirs in callers for line in theirs]
        only = _head(lines[0][1]) if len(lines) == 1 else None
        taken = 0
        for share in (budget / len(callers), budget):
            for sharing, line in lines:
                mine = share / sharing if share < budget else budget
                while _shares(line):
                    portion = _head(line)
                    if _is_apart(portion, only):
                        break
                    row, size = portion.waiting[0]
                    # A row that fits nowhere else has a batch of its own.
                    if taken and size > min(mine, left):
                        break
                    yield portion, row
                    taken, left, mine = taken + 1, left - size, mine - size
                    portion.waiting.popleft()
                    if not portion.waiting:
                        line.popleft()

    def _line(self, owner: Owner) -> Line:
        return self._lines.setdefault(owner.caller, OrderedDict()).setdefault(owner, deque())

    def _tidy(self) -> None:
        """Remove what is empty."""
        for name, questions in list(self._lines.items()):
            for owner in [owner for owner, line in questions.items() if not line]:
                del questions[owner]
            if not questions:
                del self._lines[name]


def _head(line: Line) -> Portion:
    head = line[0]
    assert isinstance(head, Portion)
    return head


def _shares(line: Line) -> bool:
    """Whether a line begins with a portion that shares batches."""
    return bool(line) and isinstance(line[0], Portion) and not line[0].alone


def _is_apart(portion: Portion, only: Portion | None) -> bool:
    """Whether a portion must not join the batch that `only` began: the first portion, where one question waits."""
    return only is not None and not portion.with_mine(only)


def _cut(line: Line, budget: float) -> Iterator[tuple[Portion, Row]]:
    """Take what one batch holds of the portion at the front of a line, and of those of its round behind it."""
    first = portion = _head(line)
    taken = 0
    while not taken or portion.waiting[0][1] <= budget:
        row, size = portion.waiting.popleft()
        yield portion, row
        taken, budget = taken + 1, budget - size
        if not portion.waiting:
            line.popleft()
            if not line or not isinstance(line[0], Portion) or not line[0].with_mine(first):
                break
            portion = line[0]
