"""What are the activations?"""

from collections import defaultdict
from dataclasses import dataclass

from .costs import FLOAT, Cost, state_bytes
from .extents import Extent, rereading
from .places import PAIRWISE, ModelDescription, Place, Site, Sized
from .prompts import Asked


@dataclass(frozen=True, slots=True)
class Activations:
    """The values at these sites."""

    sites: tuple[Site, ...]

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are read."""
        return any(site.component in PAIRWISE for site in self.sites)

    def runs(self, _asked: Asked, _model: Sized) -> int:
        """The unchanged run."""
        return 1

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """Every value."""
        return FLOAT * sum(model.numbers(site, asked.tokens) for site in self.sites)

    def restarts(self, asked: Asked, model: Sized) -> list[Extent]:
        """Each layer is read by itself; what is not kept of it is run again."""
        by_layer: dict[int, list[Place]] = defaultdict(list)
        for site in self.sites:
            for place in site.places(asked.tokens):
                by_layer[place.layer].append(place)
        return [rereading(places, asked.tokens, model.layers) for places in by_layer.values()]

    def cost(self, asked: Asked, model: Sized) -> Cost:
        """The cost before anything runs."""
        restarts, full = self.restarts(asked, model), asked.tokens * model.layers
        work = full + sum(extent.token_layers for extent in restarts)
        return Cost(1, work, full * (1 + len(restarts)), self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: ModelDescription) -> int:
        """The state of the unchanged run. Values leave as they are read."""
        return state_bytes(asked.tokens, model)
