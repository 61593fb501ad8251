"""Reductions: the answers to many cases, joined to their mean and standard deviation while they come.

A stage behind the answers of the cases. It takes them in the order of the cases, and holds sums alone, so that its
memory stays the same however many there are. Each statistic is answered like a case. What of a case has a statistic,
and what its rows of positions are, is in `reduction.gathering`; the sums are in `reduction.moments`.
"""

from collections.abc import Generator, Hashable, Iterator
from contextlib import closing
from dataclasses import fields, replace

from ..questions.answers import Answer, CaseAnswer, Context, ReducedAnswer, Statistic
from ..questions.cases import Cases, Question, groups_of
from ..questions.costs import Cost
from ..questions.interventions import InterveneQuestion
from ..questions.reductions import WAITING_BYTES
from ..questions.traces import TraceQuestion
from .reduction.gathering import Gathering, Restore
from .reduction.sums import Sum


def reduced(answers: Generator[Answer, None, None], cases: Cases[Question]) -> Iterator[Answer]:
    """Statistics in place of the answers to cases, which were asked as `questions.reductions.reducible` has them.

    Progress is passed on. A part is answered after every `Reduction.every` cases, and at the end.
    """
    assert cases.reduction is not None
    every = cases.reduction.every or len(cases.questions)
    part = _Part(cases, 0, every)
    with closing(answers):
        for answer in answers:
            if not isinstance(answer, CaseAnswer):
                yield answer
                continue
            while answer.case >= part.stop:
                yield from part.answers()
                part = _Part(cases, part.stop, every)
            part.add(answer)
    yield from part.answers()


class _Part:
    """A range of cases."""

    def __init__(self, cases: Cases[Question], first: int, every: int) -> None:
        assert cases.reduction is not None
        self.first = first
        self.stop = min(first + every, len(cases.questions))
        self._questions: tuple[TraceQuestion | InterveneQuestion, ...] = cases.questions
        self._names = cases.groups
        self._order = groups_of(cases)
        self._largest = cases.reduction.largest
        self._groups: dict[str, _Group] = {}
        self._case = -1
        self._waiting = 0

    def add(self, answer: CaseAnswer) -> None:
        """Adds a part of the answer to a case."""
        if answer.case != self._case:
            self._case = answer.case
            self._gathering = Gathering(self._questions[answer.case])
        name = self._names[answer.case]
        group = self._groups.setdefault(name, _Group(self._largest))
        self._waiting += group.add(answer, self._gathering)
        if self._waiting >= WAITING_BYTES:
            for one in self._groups.values():
                one.fold()
            self._waiting = 0

    def answers(self) -> Iterator[Answer]:
        """Both statistics of every group that has cases here."""
        for name in self._order:
            if (group := self._groups.get(name)) is not None:
                for statistic in Statistic:
                    for part in group.parts(statistic):
                        cases = self.stop - self.first
                        yield ReducedAnswer(name, statistic, self.first, cases, group.cost.cases, part)


class _Group:
    """The cases of one group."""

    def __init__(self, largest: int) -> None:
        self.cost = Cost(0, 0, 0, 0)
        self._largest = largest
        self._sums: dict[Hashable, tuple[Sum, Restore]] = {}

    def add(self, answer: CaseAnswer, gathering: Gathering) -> int:
        """Adds a part of the answer to a case. Returns how many bytes wait to be summed up."""
        if isinstance(answer.part, Context):
            self.cost = _added(self.cost, replace(answer.part.cost, cases=1))
        gathered = gathering.gather(answer.part)
        if gathered.key not in self._sums:
            largest = 0 if gathered.positions is None else self._largest
            self._sums[gathered.key] = Sum(gathered.rows, gathered.columns, largest), gathered.restore
        return self._sums[gathered.key][0].add(gathered.columns, answer.case, gathered.positions)

    def fold(self) -> None:
        """Sums up what waits."""
        for found, _ in self._sums.values():
            found.fold()

    def parts(self, statistic: Statistic) -> Iterator[Answer]:
        """The parts of one statistic, in the order in which those of a case come."""
        for found, restore in self._sums.values():
            for part in restore(found, statistic):
                yield replace(part, cost=self.cost) if isinstance(part, Context) else part


def _added(one: Cost, other: Cost) -> Cost:
    return Cost(*(getattr(one, field.name) + getattr(other, field.name) for field in fields(Cost)))
