"""The prediction of one run, and the text it generates. Logarithms are natural."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from sonde._answers.captured import Captured
from sonde._arrays import Floats, data_frame
from sonde._ask.names import FinishReason
from sonde._show.display import page, ranking_html

if TYPE_CHECKING:
    import pandas as pd

NO_TOKEN: Final = -1
"""The id and the position of what is no token: a row of a statistic over cases."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token in the model's vocabulary."""

    id: int
    text: str
    """The text, including a leading space."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TokenPrediction(Token):
    """A token, with the probability that it comes next."""

    log_probability: float

    @property
    def probability(self) -> float:
        """From 0 to 1."""
        return math.exp(self.log_probability)

    def __repr__(self) -> str:
        return f"{self.text!r} {self.probability:.4g}"


@dataclass(frozen=True, slots=True, repr=False)
class Continuation:
    """The text that a run generated."""

    tokens: tuple[Token, ...]
    text: str
    finish_reason: FinishReason | None
    """`"length"`, `"end_token"` or `"stop"`; None while tokens are still being generated."""
    log_probabilities: Floats = field(default_factory=lambda: np.empty(0, np.float32), compare=False)
    """[token]: those of the tokens that were taken, at temperature 1 and among all tokens; empty unless requested."""
    activations: Captured = field(default_factory=lambda: Captured((), ()), compare=False)
    """Those of `Generation.activations`: [layer, token, ...] for each site, without the last token, which is not read.
    The labels of the axis `position` count from the beginning of the prompt."""
    sample: int = 0
    """Which of the run's continuations this is."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        ended = "unfinished" if self.finish_reason is None else self.finish_reason
        return f"Continuation({self.text!r}, {len(self.tokens)} tokens, {ended})"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction of one run at the position that was read."""

    targets: tuple[Token, ...]
    log_probabilities: Floats
    """[target]"""
    logits: Floats
    """[target]; a difference of logits if the target has a contrast."""
    top_tokens: tuple[TokenPrediction, ...] = ()
    """The `top_k` most probable tokens."""
    activations: Captured = field(default_factory=lambda: Captured((), ()))
    continuation: Continuation | None = None
    """The first of the `continuations`; None where nothing was generated."""
    _further_samples: tuple[Continuation, ...] = ()
    _probabilities: Floats | None = field(default=None, kw_only=True)
    """Of a statistic over cases; elsewhere they follow from the logarithms."""

    @property
    def continuations(self) -> tuple[Continuation, ...]:
        """All texts that the run generated, one for each of `Generation.samples`."""
        return () if self.continuation is None else (self.continuation, *self._further_samples)

    @property
    def probabilities(self) -> Floats:
        """The targets' probabilities: [target]."""
        return np.exp(self.log_probabilities) if self._probabilities is None else self._probabilities

    def top(self, count: int | None = None) -> list[TokenPrediction]:
        """The most probable tokens; None gives 5, or all if the answer has fewer.

        Raises:
            ValueError: if `count` exceeds the request's `top_k`.
        """
        known = len(self.top_tokens)
        wanted = (min(5, known) or 5) if count is None else count
        if wanted < 0:
            message = f"expected a count of 0 or more, got {wanted}"
            raise ValueError(message)
        if wanted > known:
            message = f"the answer has only the top {known} tokens; request more with top_k={wanted}"
            raise ValueError(message)
        return list(self.top_tokens[:wanted])

    def to_dataframe(self) -> "pd.DataFrame":
        """The most probable tokens, one per row (needs pandas)."""
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
    """The prediction of a changed run, compared with the unchanged run."""

    effect: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """[target]: the log-probability in this run minus that in the unchanged run."""
    kl_divergence: float | None = None
    """KL(unchanged || this run) of the next token, in nats; None unless requested."""
    edit_norms: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    """[edit]: the L2 distance by which each edit moved the activations."""
