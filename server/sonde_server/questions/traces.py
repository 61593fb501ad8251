"""What made this prediction?"""

from dataclasses import dataclass, replace

from .activations import Activations
from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing, Counterfactual
from .circuit_discovery import CircuitDiscovery
from .costs import Cost
from .extents import Restarts
from .places import Sized
from .prediction import Prediction
from .prompts import Asked, Prompt
from .token_probability import TokenProbability

Method = Prediction | TokenProbability | CausalTracing | AttributionPatching | Activations | CircuitDiscovery


@dataclass(frozen=True, slots=True)
class TraceQuestion(Asked):
    """What made this prediction?"""

    method: Method
    dry_run: bool = False

    @property
    def asked(self) -> Asked:
        """What is asked of the unchanged run."""
        return self

    @property
    def axes(self) -> None:
        """Only a sweep has any."""
        return

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are read or changed."""
        return self.method.pairs

    @property
    def others(self) -> tuple[Prompt, ...]:
        """The prompts beside its own: what is patched from, or a counterfactual."""
        match self.method:
            case AttributionPatching(source=source) | CircuitDiscovery(source=source):
                return (source,)
            case CausalTracing(corruption=Counterfactual(prompt=other)):
                return (other,)
        return ()

    @property
    def total_tokens(self) -> int:
        """The tokens of its prompts and sources in all."""
        return self.tokens + sum(len(source.tokens) for source in self.others)

    def runs(self, model: Sized) -> int:
        """How many runs it asks for, as `Cost.runs` counts them."""
        return self.method.runs(self, model)

    def most_runs(self, model: Sized) -> int:
        """What the limit of runs is for."""
        return self.runs(model)

    def answer_bytes(self, model: Sized) -> int:
        """The size of the answer."""
        return self.method.answer_bytes(self, model)

    def restarts(self, model: Sized) -> Restarts:
        """The runs that restart from what an unchanged one keeps."""
        return self.method.restarts(self, model)

    def cost(self, model: Sized, restarts: Restarts | None = None) -> Cost:
        """The cost before anything runs. `restarts`, if they are known already, need not be counted again."""
        cost = self.method.cost(self, model, self.restarts(model) if restarts is None else restarts)
        return replace(cost, tokens=self.total_tokens)

    def held_bytes(self, model: Sized) -> int:
        """Bytes that answering it holds at one time, at most."""
        images = sum(prompt.image_bytes for prompt in (self.prompt, *self.others))
        return self.method.held_bytes(self, model) + images
