"""What made this prediction?"""

from dataclasses import dataclass

from .activations import Activations
from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing
from .prompts import Prompt, Target
from .token_probability import TokenProbability

Method = TokenProbability | CausalTracing | AttributionPatching | Activations


@dataclass(frozen=True, slots=True)
class TraceQuestion:
    """What made this prediction? Without a method: what is it?"""

    prompt: Prompt
    targets: tuple[Target, ...]
    position: int
    top_k: int
    method: Method | None
    dry_run: bool = False
