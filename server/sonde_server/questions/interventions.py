"""What happens to a prediction when parts are changed?"""

from dataclasses import dataclass

from .places import Site
from .plans import Intervention, Sweep
from .prompts import Prompt, Target


@dataclass(frozen=True, slots=True)
class Generation:
    """Every run is continued by up to so many tokens; at temperature 0 by the most probable ones."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1
    ignore_end_token: bool = False

    @property
    def answer_bytes(self) -> int:
        """About the size of one run's tokens in an answer, at most: id, the text twice, and their framing."""
        return 48 * self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read in every run."""

    targets: tuple[Target, ...]
    position: int
    top_k: int = 0
    kl_divergence: bool = False
    activations: tuple[Site, ...] = ()
    generation: Generation | None = None


@dataclass(frozen=True, slots=True)
class InterveneQuestion:
    """What happens to the prediction under each of these interventions?"""

    prompt: Prompt
    sources: tuple[Prompt, ...]
    plan: tuple[Intervention, ...] | Sweep
    readout: Readout
    dry_run: bool = False
