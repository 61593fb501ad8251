"""How does a prediction form?"""

from dataclasses import dataclass

from .prompts import Metric


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """The target read at every depth, and optionally the gradient of its final value."""

    gradient_norms: bool
    metric: Metric
