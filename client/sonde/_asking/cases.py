"""Questions about a dataset, answered case by case: which cases to ask for next, and the results that are complete."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from sonde._answers.cases import CasesResult
from sonde._answers.model import Limits
from sonde._answers.requests import Request as Asked
from sonde._answers.results import Cost, Provenance, Result
from sonde._asking.asking import Asking, Patience, Request, Response
from sonde._asking.splitting import end_of_request, without_cases
from sonde._connection.progress import Steps
from sonde._wire.assembly import Assembler
from sonde._wire.context import Context
from sonde._wire.parts import missing
from sonde.errors import NotServing, ProtocolError

ResultT = TypeVar("ResultT", bound=Result)
AnswerT = TypeVar("AnswerT")
NO_COST: Final = Cost(0, 0, 0, 0)
_TELLS_NOTHING: Final = frozenset({"progress", "case_index", "reduction"})
"""The fields of a message that says no more than that work goes on."""


class Dataset(Asking[AnswerT], ABC, Generic[AnswerT]):
    """Asks for the cases that are not answered yet, as many at a time as the server takes.

    If the server is gone in the middle, what has been answered stays, and another request asks for the rest.
    """

    needs_limits = True

    def __init__(self, request: Request, kept: Asked) -> None:
        self._whole = request
        self._kept = kept
        self._total = len(request.cases)
        self._done = 0
        """How many cases have been answered in full: the first ones."""
        self._first, self._end = 0, 0
        """The cases of the current request."""
        self._cost = NO_COST
        self._provenance: Provenance | None = None
        self._steps = Steps(cases=self._total)
        self._told = 0
        self._patience = Patience()

    def request(self, limits: Limits | None) -> Request | None:
        """The request for the cases that are lacking, or as many of them as the server takes."""
        if self._done >= self._total:
            return None
        self._first, self._end = self._done, end_of_request(self._whole, self._done, limits)
        if self._end - self._first == self._total:
            return self._whole
        asked = without_cases(self._whole)
        asked.cases.extend(self._whole.cases[self._first : self._end])
        return asked

    def feed(self, message: Response) -> None:
        """Take the next message."""
        self._patience.heard()
        if message.HasField("progress"):
            self._advance(message.progress.done, message.progress.total, message.progress.cases_done)
        if {field.name for field, _ in message.ListFields()} <= _TELLS_NOTHING:
            return
        if message.HasField("context"):
            context = Context(message.context, dry_run=True)
            self._provenance = context.provenance
            if self._whole.dry_run:
                self._cost = summed(self._cost, context.cost)
        if not self._whole.dry_run:
            self._take(message)

    def end(self) -> None:
        """Take note that the answer has ended.

        Raises:
            ProtocolError: if it lacks a case.
        """
        if not self._whole.dry_run:
            self._finish()
            if self._done < self._end:
                raise missing(f"only {self._done - self._first} of {self._end - self._first} cases were answered")
        else:
            self._cost = replace(self._cost, cases=self._end)
        self._answered(self._end)
        self._advance(1, 1, self._end - self._first)

    def _answered(self, done: int) -> None:
        """Count the first `done` cases as answered in full."""
        self._patience.answered()
        self._done = done
        self._steps = replace(self._steps, cases_done=max(done, self._steps.cases_done))

    def broken(self, error: NotServing) -> float:
        """Drop what is incomplete; return how long to wait before asking for the rest."""
        pause = self._patience.failed(error)
        self._drop()
        return pause

    @property
    def steps(self) -> Steps:
        """How much is done, of all cases."""
        return self._steps

    def _advance(self, done: int, total: int, cases_done: int) -> None:
        """Count the progress of a request as a share of the whole."""
        cases = self._end - self._first
        whole = self._steps.total or round(total * self._total / max(cases, 1))
        share = (self._first + cases * done / max(total, 1)) / self._total
        steps = max(self._steps.done, min(whole, round(whole * share)))
        answered = max(self._steps.cases_done, self._done, self._first + min(cases_done, cases))
        self._steps = Steps(steps, whole, answered, self._total)

    def news(self) -> AnswerT | None:
        """What is known so far, if another case has been answered in full."""
        if self._done <= self._told:
            return None
        self._told = self._done
        return self._answer()

    def result(self) -> AnswerT:
        """The whole answer.

        Raises:
            ProtocolError: if a case was not answered.
        """
        if self._done < self._total:
            raise missing(f"only {self._done} of {self._total} cases were answered")
        return self._answer()

    @property
    def _made(self) -> Provenance:
        if self._provenance is None:
            raise missing("no message at all")
        return self._provenance

    @abstractmethod
    def _take(self, message: Any) -> None:
        """Take a message that is about cases."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete what has been taken; count its cases as done."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget what is incomplete."""

    @abstractmethod
    def _answer(self) -> AnswerT:
        """What has been answered in full."""


class EachCase(Dataset[CasesResult[ResultT]], Generic[ResultT]):
    """A dataset that is answered case by case."""

    def __init__(self, request: Request, kept: Asked, make: Callable[[], Assembler[Any, ResultT]]) -> None:
        """`make` creates the assembler of the answer to one case."""
        super().__init__(request, kept)
        self._make = make
        self._groups = tuple(case.group for case in request.cases)
        self._results: list[ResultT] = []
        self._current: Assembler[Any, ResultT] | None = None

    def _take(self, message: Any) -> None:
        index = self._number(message.case_index)
        if index == self._done + 1 and self._current is not None:
            self._finish()
        if index != self._done or index >= self._end:
            raise ProtocolError(f"the answer has case {index} where case {self._done} was expected")
        if self._current is None:
            self._current = self._make()
        self._current.feed(message)

    def _number(self, case_index: int) -> int:
        """Which of all cases a message is about."""
        return self._first + case_index

    def _finish(self) -> None:
        if self._current is None:
            return
        result = self._current.result()
        self._results.append(result)
        self._cost = summed(self._cost, replace(result.cost, cases=1))
        self._current = None
        self._answered(self._done + 1)

    def _drop(self) -> None:
        self._current = None

    def _answer(self) -> CasesResult[ResultT]:
        return CasesResult(tuple(self._results), self._groups, self._cost, self._made, self._whole.dry_run, self._kept)


def summed(first: Cost, second: Cost) -> Cost:
    """The cost of two parts of a dataset."""
    return Cost(
        first.runs + second.runs,
        first.token_layers + second.token_layers,
        first.full_token_layers + second.full_token_layers,
        first.answer_bytes + second.answer_bytes,
        first.cases + second.cases,
        first.tokens + second.tokens,
    )
