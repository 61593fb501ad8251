"""What every part of a request is read with: the model's bounds, the server's limits, and the faults found so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import Limits
from ..errors import InvalidQuestion, Unsupported, Violation
from ..questions.cases import Cases
from ..questions.causal_scrubbing import CausalScrubbing
from ..questions.interventions import InterveneQuestion
from ..questions.places import ModelDescription
from ..questions.traces import TraceQuestion

AnyQuestion = TraceQuestion | InterveneQuestion | CausalScrubbing
AnyCases = Cases[TraceQuestion] | Cases[InterveneQuestion]

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

# Statuses travel as headers of about 8 KiB at most; what does not fit is counted.
MOST_VIOLATIONS = 16
LARGEST_SEED = 2**32 - 1
T = TypeVar("T")


def unwatched() -> None:
    """The check of a request whose caller is always waited for."""


@dataclass(slots=True)
class Problems:
    """Collects faults, so that one answer reports all of them."""

    violations: list[Violation] = field(default_factory=list)
    beyond: int = 0
    refused: Unsupported | None = None

    def add(self, path: str, description: str) -> None:
        """Notes a field that is wrong: what was expected, and what the request has."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(Violation(path, description))
        else:
            self.beyond += 1

    def refuse(self, path: str, reason: str) -> None:
        """Notes a field that is well formed, but asks for something that this model or server lacks."""
        if self.refused is None:
            self.refused = Unsupported(path, reason)

    def settle(self) -> None:
        """Raises InvalidQuestion, else Unsupported, if any fault was noted."""
        if self.violations:
            if self.beyond:
                last = self.violations[-1]
                text = f"{last.description} (and {self.beyond} more violations)"
                self.violations[-1] = Violation(last.field, text)
            raise InvalidQuestion(self.violations)
        if self.refused is not None:
            raise self.refused


@dataclass(frozen=True, slots=True)
class Reader:
    """The bounds within which a request is read.

    `prompt`, `sources` and `targets`: the paths of what is run, patched from and measured. `reduced`: answers are
    joined over cases. `shared`: what was read once for all cases. `check`: raises Stopped when nobody waits any
    more; it is called time and again, since a small request can have much to read: each case times each entry of lists.
    """

    model: ModelDescription
    vocabulary: "Vocabulary"
    limits: Limits
    problems: Problems = field(default_factory=Problems)
    prompt: str = "prompt"
    sources: str = "sources"
    targets: str = "targets"
    reduced: bool = False
    shared: dict[object, Any] = field(default_factory=dict)
    check: Callable[[], None] = unwatched

    def once(self, key: object, read: Callable[[], T | None]) -> T | None:
        """What is the same for all cases, read for the first of them. A faulty one is read, and noted, by each."""
        if key in self.shared:
            known: T = self.shared[key]
            return known
        before = len(self.problems.violations)
        found = read()
        if found is not None and len(self.problems.violations) == before:
            self.shared[key] = found
        return found

    def index(self, value: int, count: int, path: str, kind: str) -> int | None:
        """A unit, source or token, counted from 0."""
        if 0 <= value < count:
            return value
        expected = (
            f"expected a {kind} from 0 to {count - 1}" if count else f"expected no {kind}, because there are none"
        )
        self.problems.add(path, f"{expected}, got {value}")
        return None

    def layer(self, value: int, path: str) -> int | None:
        """A layer of the hosted model; negative ones count from its end."""
        layers = self.model.layers
        if -layers <= value < layers:
            return value % layers
        self.problems.add(path, f"expected a layer from {-layers} to {layers - 1}, got {value}")
        return None

    def layers(self, values: Sequence[int], path: str) -> tuple[int, ...]:
        """Several layers, each at most once."""
        if not self.listed(len(values), max(self.model.layers, MOST_LISTED), path, "layers"):
            return ()
        return self.distinct([self.layer(value, f"{path}[{i}]") for i, value in enumerate(values)], path, "layer")

    def position(self, value: int, tokens: int | None, path: str) -> int | None:
        """A position in a prompt of `tokens` tokens; negative ones count from its end."""
        if tokens is None:
            return None
        if -tokens <= value < tokens:
            return value % tokens
        self.problems.add(
            path, f"expected a position from {-tokens} to {tokens - 1} in a prompt of {tokens} tokens, got {value}"
        )
        return None

    def indices(self, values: Sequence[int], count: int, path: str, kind: str) -> tuple[int, ...]:
        """Several indices, each at most once."""
        if not self.listed(len(values), max(count, MOST_LISTED), path, f"{kind}s"):
            return ()
        if _plain(values, 0, count):
            return tuple(values)
        return self.distinct([self.index(v, count, f"{path}[{i}]", kind) for i, v in enumerate(values)], path, kind)

    def positions(self, values: Sequence[int], tokens: int | None, path: str) -> tuple[int, ...]:
        """Several positions, each at most once."""
        if not self.listed(len(values), max(tokens or 0, MOST_LISTED), path, "positions"):
            return ()
        if tokens is not None and _plain(values, 0, tokens):
            return tuple(values)
        resolved = [self.position(v, tokens, f"{path}[{i}]") for i, v in enumerate(values)]
        return self.distinct(resolved, path, "position")

    def distinct(self, values: Sequence[int | None], path: str, kind: str) -> tuple[int, ...]:
        """The values without the faulty ones; a value that is listed twice is a fault."""
        seen: set[int] = set()
        for i, value in enumerate(values):
            if value is not None and value in seen:
                self.problems.add(f"{path}[{i}]", f"expected each {kind} once, got {value} twice")
            elif value is not None:
                seen.add(value)
        return tuple(value for value in values if value is not None)

    def seed(self, value: int, path: str) -> int:
        """A seed of MT19937."""
        if not 0 <= value <= LARGEST_SEED:
            self.problems.add(path, f"expected a seed from 0 to {LARGEST_SEED}, got {value}")
        return value

    def at_least_one(self, value: int, path: str) -> int:
        """A count of 1 or more."""
        if value < 1:
            self.problems.add(path, f"expected 1 or more, got {value} (leave it unset for the default)")
            return 1
        return value

    def top_k(self, value: int, path: str) -> int:
        """How many top tokens: all that the vocabulary has, if it has fewer than were asked for."""
        most = min(value, self.model.vocabulary_size)
        if 0 <= most <= LARGEST_TOP_K:
            return most
        self.problems.add(path, f"expected 0 to {LARGEST_TOP_K} top tokens, got {value}")
        return 0

    def listed(self, given: int, most: int, path: str, kind: str) -> bool:
        """Whether a list is short enough to be read entry by entry; a longer one is refused unread."""
        if given > most:
            self.problems.add(path, f"expected at most {most} {kind}, got {given}")
        return given <= most

    def check_tokens(self, tokens: int, path: str) -> bool:
        """Whether one request may have this many tokens; more are refused."""
        most = self.limits.max_total_tokens
        if most and tokens > most:
            text = f"the prompts and sources have at least {tokens} tokens in all; the limit is {most}. Split them up"
            self.problems.add(path, text)
            return False
        return True

    def runs(self, runs: int, path: str) -> bool:
        """Whether one request may need this many runs; more are refused."""
        most = self.limits.max_runs
        if most and runs > most:
            self.problems.add(path, f"this request needs {runs} runs; the limit is {most}. Split it up")
            return False
        return True

    def check_size(self, question: AnyQuestion | AnyCases, path: str, *, answer: str = "", memory: str = "") -> None:
        """Raises InvalidQuestion where a question needs more runs, tokens or bytes than one request may.

        `path` is what a request asks for less of; `answer` and `memory` where that is another field for these bytes.
        """
        self.runs(question.most_runs(self.model), path)
        many = isinstance(question, Cases | CausalScrubbing)
        self.check_tokens(question.total_tokens, "cases" if many else memory or path)
        # Bytes are counted run by run, which takes long for what is refused anyway.
        self.problems.settle()
        size, most = question.answer_bytes(self.model), self.limits.max_answer_bytes
        if most and size > most:
            text = f"the answer would have {size} bytes; the limit is {most}. Ask for fewer runs, sites or positions"
            self.problems.add(answer or path, text)
        size, most = question.held_bytes(self.model), self.limits.max_working_bytes
        if most and size > most:
            text = (
                f"answering this request would need up to {size} bytes of memory; the limit is {most}. "
                "Ask for fewer or shorter prompts, samples, sources or targets"
            )
            self.problems.add(memory or path, text)
        self.problems.settle()


def _plain(values: Sequence[int], least: int, beyond: int) -> bool:
    """Whether all values lie in a range and none is repeated: the usual case, checked without a loop in Python."""
    return not values or (min(values) >= least and max(values) < beyond and len(set(values)) == len(values))


# Lists longer than this, and longer than what they index, are refused unread.
MOST_LISTED = 1024
# What one request may list.
MOST_EDITS = 1 << 18
MOST_SITES = 4_096
# The top tokens of one run (id, log-probability and text) stay well below a message of 1 MiB.
LARGEST_TOP_K = 16_384
# Likewise the numbers of one cell, or of one depth.
MOST_TARGETS = 4_096
MOST_NUMBERS = 131_072
