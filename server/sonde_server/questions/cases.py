"""Many prompts in one request: a question for each, and what their answers are joined to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .circuit_discovery import CircuitDiscovery
from .costs import Cost
from .interventions import InterveneQuestion
from .places import Sized
from .reductions import WAITING_BYTES, WHILE_SUMMED, reduced_bytes, summed_bytes
from .traces import TraceQuestion

Question = TypeVar("Question", TraceQuestion, InterveneQuestion)
# Cases that advance together hold no more than this; one that needs more is alone.
LIVE_BYTES = {"cpu": 1 << 29, "cuda": 4 << 30}


@dataclass(frozen=True, slots=True)
class Reduction:
    """Statistics over the cases in place of their answers.

    `every`: how many cases a part is over; 0: one part, over all. `largest`: how many of the largest activations are
    listed.
    """

    every: int = 0
    largest: int = 0


@dataclass(frozen=True, slots=True)
class Cases(Generic[Question]):
    """The same question about many prompts, by case. `groups`: the group of each case, for the reduction."""

    questions: tuple[Question, ...]
    groups: tuple[str, ...]
    reduction: Reduction | None = None
    dry_run: bool = False

    @property
    def together(self) -> bool:
        """Whether the answer is found for all cases at once, instead of being a statistic of theirs."""
        first: TraceQuestion | InterveneQuestion = self.questions[0]
        of_circuits = isinstance(first, TraceQuestion) and isinstance(first.method, CircuitDiscovery)
        return of_circuits and self.reduction is not None

    def runs(self, model: Sized) -> int:
        """How many runs all cases ask for, as `Cost.runs` counts them."""
        return sum(question.runs(model) for question in self.questions)

    def most_runs(self, model: Sized) -> int:
        """The runs of the case that asks for the most."""
        return max(question.runs(model) for question in self.questions)

    def cost(self, model: Sized) -> Cost:
        """The cost of all cases, before anything runs. Bases that several cases share are counted for each."""
        costs = [question.cost(model) for question in self.questions]
        return Cost(
            sum(cost.runs for cost in costs),
            sum(cost.token_layers for cost in costs),
            sum(cost.full_token_layers for cost in costs),
            self.answer_bytes(model),
            self.total_tokens,
            len(costs),
        )

    @property
    def total_tokens(self) -> int:
        """The tokens of all prompts and sources. A source that several cases share counts once."""
        others = {id(other): len(other.tokens) for question in self.questions for other in question.others}
        return sum(question.asked.tokens for question in self.questions) + sum(others.values())

    def answer_bytes(self, model: Sized) -> int:
        """The size of the answer; of a reduction, at most."""
        if self.reduction is None:
            return sum(question.answer_bytes(model) for question in self.questions)
        every = self.reduction.every or max(1, len(self.questions))
        parts = -(-len(self.questions) // every) * min(every, len(set(self.groups)))
        return parts * max(reduced_bytes(one, model, self.reduction.largest) for one in self.questions)

    def held_bytes(self, model: Sized) -> int:
        """Bytes that answering them holds at one time, at most: as much as cases that advance together may hold."""
        held = [question.held_bytes(model) for question in self.questions]
        if self.together:
            # All prompts are needed for every trial.
            return sum(held)
        return max(*held, min(sum(held), live_bytes(model.device_type))) + self._summed_bytes(model) if held else 0

    def _summed_bytes(self, model: Sized) -> int:
        """What a reduction holds: the sums of every group, and the answers that wait to be summed up."""
        if self.reduction is None:
            return 0
        each = max(summed_bytes(question, model, self.reduction.largest) for question in self.questions)
        return WHILE_SUMMED * WAITING_BYTES + each * min(
            self.reduction.every or len(self.groups), len(set(self.groups))
        )


def live_bytes(device_type: str) -> int:
    """How much the cases that advance together may hold, on a kind of device such as "cuda"."""
    return LIVE_BYTES["cuda" if device_type == "cuda" else "cpu"]


def groups_of(cases: Cases[Question]) -> Sequence[str]:
    """The groups, in the order in which they first appear."""
    return tuple(dict.fromkeys(cases.groups))
