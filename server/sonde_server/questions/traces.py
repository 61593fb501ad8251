"""What made this prediction?"""

from dataclasses import dataclass

from .activations import Activations
from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing
from .costs import Cost
from .places import Component, ModelDescription, Sized
from .prediction import Prediction
from .prompts import Asked
from .token_probability import TokenProbability

Method = Prediction | TokenProbability | CausalTracing | AttributionPatching | Activations


@dataclass(frozen=True, slots=True)
class TraceQuestion(Asked):
    """What made this prediction?"""

    method: Method
    dry_run: bool = False

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that are edited or read by name."""
        return self.method.components

    def runs(self, model: Sized) -> int:
        """How many runs it asks for, as `Cost.runs` counts them."""
        return self.method.runs(self, model)

    def answer_bytes(self, model: Sized) -> int:
        """The size of the answer."""
        return self.method.answer_bytes(self, model)

    def cost(self, model: Sized) -> Cost:
        """The cost before anything runs."""
        return self.method.cost(self, model)

    def held_bytes(self, model: ModelDescription) -> int:
        """Bytes that answering it holds at one time, at most."""
        return self.method.held_bytes(self, model)
