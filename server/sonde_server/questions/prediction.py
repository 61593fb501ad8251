"""What is the prediction?"""

from dataclasses import dataclass

from .costs import FLOAT, Cost, state_bytes
from .extents import Restarts
from .places import Sized
from .prompts import Asked


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of the unchanged run, and nothing more."""

    @property
    def pairs(self) -> bool:
        """Neither scores nor patterns are read or changed."""
        return False

    def runs(self, _asked: Asked, _model: Sized) -> int:
        """The unchanged run."""
        return 1

    def answer_bytes(self, asked: Asked, _model: Sized) -> int:
        """Targets and top tokens, two numbers each."""
        return 2 * FLOAT * (len(asked.targets) + asked.top_k)

    def restarts(self, _asked: Asked, _model: Sized) -> Restarts:
        """No run restarts from what the unchanged one keeps."""
        return {}

    def cost(self, asked: Asked, model: Sized, _restarts: Restarts) -> Cost:
        """The cost before anything runs."""
        work = asked.tokens * model.layers
        return Cost(self.runs(asked, model), work, work, self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """The state of the unchanged run."""
        return state_bytes(asked.tokens, model)
