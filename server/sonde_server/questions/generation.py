"""What does the model go on to say?"""

import enum
from dataclasses import dataclass

from .answers import Answer
from .places import Site


@dataclass(frozen=True, slots=True)
class Generation:
    """Every run is continued by up to `max_new_tokens`; at temperature 0 by the most probable ones."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1
    ignore_end_token: bool = False
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    samples: int = 1
    log_probabilities: bool = False
    activations: tuple[Site, ...] = ()

    @property
    def answer_bytes(self) -> int:
        """About the size of one run's tokens in an answer, at most: id, the text twice, and their framing."""
        return 48 * self.max_new_tokens


class FinishReason(enum.IntEnum):
    """Why a continuation ended, numbered as in the contract."""

    LENGTH = 1
    END_TOKEN = 2
    STOP = 3


@dataclass(frozen=True, slots=True)
class Generated(Answer):
    """One step of several runs (-1: the unchanged one): the token of each at `offset`, and why it ends there, if so."""

    offset: int
    runs: tuple[int, ...]
    tokens: tuple[int, ...]
    reasons: tuple[FinishReason | None, ...]
