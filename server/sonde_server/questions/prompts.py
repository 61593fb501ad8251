"""What the model reads, and whose prediction is measured."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Metric(enum.IntEnum):
    """Which number of a target is differentiated."""

    LOGIT = 1
    LOG_PROBABILITY = 2
    PROBABILITY = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the text with each token's place in it where the prompt was given as text or as a chat.

    `spans`: the positions that have a name, by name.
    """

    tokens: tuple[int, ...]
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    spans: tuple[tuple[str, tuple[int, ...]], ...] = ()


def overlapping(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    """The positions of the tokens that have characters from `start` to before `end`."""
    return tuple(i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > start)


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured; with a contrast the logit is the difference of the two."""

    token: int
    contrast: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What every question asks of the unchanged run: its prediction at `position`, without targets its own."""

    prompt: Prompt
    targets: tuple[Target, ...]
    position: int
    top_k: int

    @property
    def tokens(self) -> int:
        """The length of the prompt."""
        return len(self.prompt.tokens)

    @property
    def columns(self) -> int:
        """How many targets are answered; where none is named, the run's own top prediction is the one."""
        return max(1, len(self.targets))
