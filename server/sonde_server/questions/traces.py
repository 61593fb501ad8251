"""What made this prediction?"""

from dataclasses import dataclass

from .activations import Activations
from .attribution_patching import AttributionPatching
from .causal_tracing import CausalTracing
from .costs import Cost
from .extents import Restarts
from .places import Sized
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

    def runs(self, model: Sized) -> int:
        """How many runs it asks for, as `Cost.runs` counts them."""
        return self.method.runs(self, model)

    def answer_bytes(self, model: Sized) -> int:
        """The size of the answer."""
        return self.method.answer_bytes(self, model)

    def restarts(self, model: Sized) -> Restarts:
        """The runs that restart from what an unchanged one keeps."""
        return self.method.restarts(self, model)

    def cost(self, model: Sized, restarts: Restarts | None = None) -> Cost:
        """The cost before anything runs. `restarts`, if they are known already, need not be counted again."""
        return self.method.cost(self, model, self.restarts(model) if restarts is None else restarts)

    def held_bytes(self, model: Sized) -> int:
        """Bytes that answering it holds at one time, at most."""
        return self.method.held_bytes(self, model)
