"""What does the model go on to say?"""

import enum
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from .activations import Encoding
from .answers import Answer, Floats
from .costs import DOUBLE, FLOAT, continued_at_once
from .places import Site, Sized
from .texts import Decode


class AtOnce(NamedTuple):
    """How many runs are continued at a time, and how many continuations of each."""

    runs: int
    samples: int


@dataclass(frozen=True, slots=True)
class Generation:
    """Every run is continued by up to `max_new_tokens`; at temperature 0 by the most probable ones.

    `decode`: the text of tokens, in which `stop` is looked for. `changed_only`: the unchanged run is not continued.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1
    ignore_end_token: bool = False
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    samples: int = 1
    log_probabilities: bool = False
    activations: tuple[Site, ...] = ()
    decode: Decode | None = field(default=None, compare=False, repr=False)
    changed_only: bool = False

    @property
    def steps(self) -> int:
        """How many positions of a run are generated and read, over all its continuations; the last of each is not."""
        return self.samples * (self.max_new_tokens - 1)

    def continued(self, changed: int) -> int:
        """How many runs are continued, with `changed` changed ones."""
        return changed if self.changed_only else changed + 1

    def answer_bytes(self, model: Sized, encoding: Encoding) -> int:
        """About the size of one run's tokens in an answer, at most: id, the text twice, and their framing; the rest."""
        every = 48 + FLOAT * self.log_probabilities
        read = encoding.bytes * self.numbers(model)
        return self.samples * self.max_new_tokens * every + self.steps * read

    def numbers(self, model: Sized) -> int:
        """How many numbers are read of a generated position."""
        return sum(
            len(site.layers) * prod(model.selected_shape(site.component, site.units, 1, 1)) for site in self.activations
        )

    def at_once(self, runs: int, prompt: int, new: int, device: str) -> AtOnce:
        """How many continuations of how many `runs` are computed at a time.

        `prompt` and `new`: the bytes of keys and values of the prompt, and of the tokens of one continuation.
        """
        if self.samples == 1:
            return AtOnce(continued_at_once(runs, prompt + new, device), 1)
        samples = continued_at_once(self.samples, new, device)
        return AtOnce(max(1, continued_at_once(runs * samples, new + prompt // samples, device) // samples), samples)

    def held_bytes(self, runs: int, prompt: int, new: int, model: Sized) -> int:
        """What is held of `runs` while they are continued: keys and values, and the draws of a step."""
        at_once = self.at_once(runs, prompt, new, model.device_type)
        drawn = DOUBLE * model.vocabulary_size * self.samples if self.temperature else 0
        if self.samples == 1:
            return at_once.runs * (prompt + new) + drawn
        # A prompt is copied once, from where it was computed to where its continuations share it.
        return at_once.runs * (2 * prompt + at_once.samples * new) + drawn


class FinishReason(enum.IntEnum):
    """Why a continuation ended, numbered as in the contract."""

    LENGTH = 1
    END_TOKEN = 2
    STOP = 3


@dataclass(frozen=True, slots=True, eq=False)
class Generated(Answer):
    """One step of several continuations: the token of each at `offset`, and why it ends there, if so.

    `runs` (-1: the unchanged one) and `samples`: which continuations. log_probabilities: [continuations], where asked
    for. activations: by site [continuations, layers, positions, ...], where `positions` is 1, and 0 for tokens that are
    not read.
    """

    offset: int
    runs: tuple[int, ...]
    samples: tuple[int, ...]
    tokens: tuple[int, ...]
    reasons: tuple[FinishReason | None, ...]
    log_probabilities: Floats | None = None
    activations: tuple[Floats, ...] = ()
    encoding: Encoding = Encoding.FLOAT32
