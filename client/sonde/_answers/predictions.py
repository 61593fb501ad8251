"""What one run predicts, and what it goes on to say. Log-probabilities are natural."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sonde._answers.captured import Captured
from sonde._arrays import Floats, data_frame
from sonde._ask.names import FinishReason
from sonde._show.display import page, ranking_html

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the model's vocabulary."""

    id: int
    text: str
    """As it stands in a text, a leading space included."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TokenPrediction(Token):
    """A token with the probability that it comes next."""

    log_probability: float

    @property
    def probability(self) -> float:
        """From 0 to 1."""
        return math.exp(self.log_probability)

    def __repr__(self) -> str:
        return f"{self.text!r} {self.probability:.4g}"


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a run went on to say."""

    tokens: tuple[Token, ...]
    text: str
    finish_reason: FinishReason | None
    """`"length"` or `"end_token"`; None while it is still going on."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What one run predicts at the position read."""

    targets: tuple[Token, ...]
    log_probabilities: Floats
    """[target]"""
    logits: Floats
    """[target]; a difference where the target has a contrast."""
    top_tokens: tuple[TokenPrediction, ...] = ()
    """The most probable tokens, as many as `top_k` asked for."""
    activations: Captured = field(default_factory=lambda: Captured((), ()))
    continuation: Continuation | None = None

    @property
    def probabilities(self) -> Floats:
        """The targets' probabilities: [target]."""
        return np.exp(self.log_probabilities)

    def top(self, count: int = 5) -> list[TokenPrediction]:
        """The most probable tokens.

        Raises:
            ValueError: for more than the request's `top_k`.
        """
        if count > len(self.top_tokens):
            message = f"the answer has the top {len(self.top_tokens)}; ask with top_k={count} for more"
            raise ValueError(message)
        return list(self.top_tokens[:count])

    def to_dataframe(self) -> "pd.DataFrame":
        """The most probable tokens, a row each (needs pandas)."""
        ranked = self.top_tokens
        return data_frame(
            {
                "token": [token.text for token in ranked],
                "id": [token.id for token in ranked],
                "log_probability": [token.log_probability for token in ranked],
                "probability": [token.probability for token in ranked],
            }
        )

    def __repr__(self) -> str:
        pairs = zip(self.targets, self.probabilities, strict=True)
        targets = ", ".join(f"{token.text!r} {probability:.4g}" for token, probability in pairs)
        return f"{type(self).__name__}({targets})"

    def _repr_html_(self) -> str:
        return page(ranking_html("what comes next", self.top_tokens))


@dataclass(frozen=True, eq=False, repr=False)
class Run(Prediction):
    """What a changed run predicts, beside the unchanged one."""

    effect: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """[target]: log-probability here less that of the unchanged run."""
    kl_divergence: float | None = None
    """KL(unchanged || this run) of the next token, in nats, if it was asked for."""
    edit_norms: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """[edit]: L2 distance by which each edit moved what it hit."""
