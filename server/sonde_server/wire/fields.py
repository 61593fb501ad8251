"""What every decoder works with: the model's bounds, the server's limits, and the faults found so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config import Limits
from ..errors import InvalidQuestion, Unsupported, Violation
from ..questions.places import ModelDescription

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

# Statuses travel as headers of about 8 KiB at most; what does not fit is counted.
MOST_VIOLATIONS = 16
LARGEST_SEED = 2**32 - 1


@dataclass(slots=True)
class Problems:
    """Collects faults, so that a caller learns of all of them at once."""

    violations: list[Violation] = field(default_factory=list)
    beyond: int = 0
    refused: Unsupported | None = None

    def add(self, path: str, description: str) -> None:
        """Notes a field that is wrong: what was given, and what would do."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(Violation(path, description))
        else:
            self.beyond += 1

    def refuse(self, path: str, reason: str) -> None:
        """Notes a field that is well formed, but asks for what is not here."""
        if self.refused is None:
            self.refused = Unsupported(path, reason)

    def settle(self) -> None:
        """Raises InvalidQuestion or Unsupported where there was any fault; the first kind goes before."""
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
    """The bounds to read a request within."""

    model: ModelDescription
    vocabulary: "Vocabulary"
    limits: Limits
    problems: Problems = field(default_factory=Problems)

    def index(self, value: int, count: int, path: str, kind: str) -> int | None:
        """A unit, source or token, counted from 0."""
        if 0 <= value < count:
            return value
        allowed = f"{kind}s are 0 to {count - 1}" if count else f"there are no {kind}s"
        self.problems.add(path, f"{kind} {value} does not exist; {allowed}")
        return None

    def layer(self, value: int, path: str) -> int | None:
        """A layer of the hosted model; negative ones count from its end."""
        layers = self.model.layers
        if -layers <= value < layers:
            return value % layers
        self.problems.add(path, f"layer {value} does not exist; layers are 0 to {layers - 1}")
        return None

    def layers(self, values: Sequence[int], path: str) -> tuple[int, ...]:
        """Several layers, each at most once."""
        if not self.listed(len(values), max(self.model.layers, MOST_LISTED), path, "layers"):
            return ()
        return self.distinct([self.layer(value, f"{path}[{i}]") for i, value in enumerate(values)], path, "layer")

    def position(self, value: int, tokens: int | None, path: str) -> int | None:
        """A position of a prompt of so many tokens; negative ones count from its end."""
        if tokens is None:
            return None
        if -tokens <= value < tokens:
            return value % tokens
        self.problems.add(
            path, f"position {value} is not in the prompt of {tokens} tokens; positions are {-tokens} to {tokens - 1}"
        )
        return None

    def indices(self, values: Sequence[int], count: int, path: str, kind: str) -> tuple[int, ...]:
        """Several of them, each at most once."""
        if not self.listed(len(values), max(count, MOST_LISTED), path, f"{kind}s"):
            return ()
        if _plain(values, 0, count):
            return tuple(values)
        return self.distinct([self.index(v, count, f"{path}[{i}]", kind) for i, v in enumerate(values)], path, kind)

    def positions(self, values: Sequence[int], tokens: int | None, path: str) -> tuple[int, ...]:
        """Several of them, each at most once."""
        if not self.listed(len(values), max(tokens or 0, MOST_LISTED), path, "positions"):
            return ()
        if tokens is not None and _plain(values, 0, tokens):
            return tuple(values)
        resolved = [self.position(v, tokens, f"{path}[{i}]") for i, v in enumerate(values)]
        return self.distinct(resolved, path, "position")

    def distinct(self, values: Sequence[int | None], path: str, kind: str) -> tuple[int, ...]:
        """The values without those that were faulty; naming one twice is a fault."""
        seen: set[int] = set()
        for i, value in enumerate(values):
            if value is not None and value in seen:
                self.problems.add(f"{path}[{i}]", f"{kind} {value} is named twice; name each once")
            elif value is not None:
                seen.add(value)
        return tuple(value for value in values if value is not None)

    def seed(self, value: int, path: str) -> int:
        """A seed of MT19937."""
        if not 0 <= value <= LARGEST_SEED:
            self.problems.add(path, f"seed {value} is out of range; seeds are 0 to {LARGEST_SEED}")
        return value

    def at_least_one(self, value: int, path: str) -> int:
        """A count that makes sense from 1 on."""
        if value < 1:
            self.problems.add(path, f"{value} is too few; give 1 or more, or leave it unset")
            return 1
        return value

    def top_k(self, value: int, path: str) -> int:
        """How many top tokens; bounded so that one run's fit in a message."""
        most = min(self.model.vocabulary_size, LARGEST_TOP_K)
        if 0 <= value <= most:
            return value
        self.problems.add(path, f"{value} top tokens cannot be given; ask for 0 to {most}")
        return 0

    def listed(self, given: int, most: int, path: str, kind: str) -> bool:
        """Whether a list is short enough to be looked through; one that is not is refused without."""
        if given > most:
            self.problems.add(path, f"{given} {kind} were given; give at most {most}")
        return given <= most

    def runs(self, runs: int, path: str) -> bool:
        """Whether one request may take so many runs; more are refused."""
        most = self.limits.max_runs
        if most and runs > most:
            self.problems.add(path, f"this takes {runs} runs and a request may take {most}; ask for a part of it")
            return False
        return True

    def memory(self, size: int, path: str) -> None:
        """Refuses what would hold more memory than one request may."""
        most = self.limits.max_working_bytes
        if most and size > most:
            self.problems.add(
                path,
                f"answering this would hold up to {size} bytes at once and may hold {most}; "
                "ask for fewer or shorter prompts, samples, sources or targets",
            )

    def answer(self, size: int, path: str) -> None:
        """Refuses an answer that is larger than one request may ask for."""
        most = self.limits.max_answer_bytes
        if most and size > most:
            self.problems.add(
                path, f"the answer would be {size} bytes and may be {most}; ask for fewer runs, sites or positions"
            )


def _plain(values: Sequence[int], least: int, beyond: int) -> bool:
    """Whether all lie in a range and none comes twice: the usual case, seen without looking at them one by one."""
    return not values or (min(values) >= least and max(values) < beyond and len(set(values)) == len(values))


# Lists that are longer than what they index, and longer than this, are refused unseen.
MOST_LISTED = 1024
# What one request may spell out one by one.
MOST_EDITS = 1 << 18
MOST_SITES = 4_096
# One run's top tokens (id, log-probability and text) stay well under a message of 1 MiB.
LARGEST_TOP_K = 16_384
# Likewise the numbers of one cell or of one depth.
MOST_TARGETS = 4_096
MOST_VALUES_TOGETHER = 131_072
