"""What are the activations?"""

from collections import defaultdict
from dataclasses import dataclass

from .costs import FLOAT, Cost, state_bytes
from .extents import reread
from .places import Component, ModelDescription, Place, Site, Sized
from .prompts import Asked


@dataclass(frozen=True, slots=True)
class Activations:
    """The values at these sites."""

    sites: tuple[Site, ...]

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that are read."""
        return tuple(site.component for site in self.sites)

    def runs(self, _asked: Asked, _model: Sized) -> int:
        """The unchanged run."""
        return 1

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """Every value."""
        return FLOAT * sum(model.numbers(site, asked.tokens) for site in self.sites)

    def cost(self, asked: Asked, model: Sized) -> Cost:
        """The cost before anything runs. Each layer with values that are not kept is run again for them, by itself."""
        by_layer: dict[int, list[Place]] = defaultdict(list)
        for site in self.sites:
            for place in site.places(asked.tokens):
                by_layer[place.layer].append(place)
        work = full = asked.tokens * model.layers
        work += sum(reread(places, asked.tokens, model.layers) for places in by_layer.values())
        return Cost(1, work, full * (1 + len(by_layer)), self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: ModelDescription) -> int:
        """The state of the unchanged run. Values leave as they are read."""
        return state_bytes(asked.tokens, model)
