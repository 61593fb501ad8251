"""Causal tracing (Meng et al. 2022): which states carry the prediction?"""

from dataclasses import dataclass

from .edits import Values
from .places import Component
from .prompts import Prompt


@dataclass(frozen=True, slots=True)
class GaussianCorruption:
    """Standard normal noise, scaled by `deviations` of the embedding matrix or by a fixed deviation."""

    deviations: float | None = 3.0
    standard_deviation: float | None = None
    samples: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class ExplicitNoise:
    """Noise [samples, corrupted positions, D] as the caller sent it."""

    values: Values


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Another prompt of as many tokens, whose embeddings take the place of the prompt's where they differ."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class CausalTracing:
    """Corrupt the subject, restore one clean state at a time (Meng et al. 2022)."""

    corruption: GaussianCorruption | ExplicitNoise | Counterfactual
    replace: bool
    subject: tuple[int, ...]
    components: tuple[Component, ...]
    window: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    per_sample: bool
