"""Attribution patching: estimates of what every patch would do.

The cost, in positions x blocks: the runs of both prompts; then, for the positions up to the one that is read, each
block once with its graph, once backwards for each target, and the source's values once. With several integration steps,
each has its own run and its own backward pass, and the prompt's values are computed once as well. Dropping layers takes
L - l backward passes for each target in block l. For the places that are verified only an upper bound is known before.
The products for edges are not blocks, and are not counted.
"""

from dataclasses import dataclass
from math import prod

from .answers import Answer, Floats, Integers
from .costs import DOUBLE, EDGE_CHUNK_BYTES, FLOAT, Cost, state_bytes
from .extents import Extent, Restarts, extent_of
from .places import (
    EDGE_ENDS,
    IN_BLOCK,
    LAYERLESS,
    PAIRWISE,
    UNIT_SWEPT,
    Component,
    Place,
    Site,
    Sized,
)
from .prompts import Asked, Metric, Prompt

# The components whose patches change the softmax of attention, which can be recomputed for them.
RECOMPUTED = (Component.QUERY, Component.KEY)


@dataclass(frozen=True, slots=True)
class AttributionPatching:
    """Estimate what patching each place from `source` would do.

    `edges`: how many edges are answered; 0: all, None: none. `rows`: positions whose estimates are summed, each row
    being one place; None: every position is a place.
    """

    source: Prompt
    components: tuple[Component, ...]
    integration_steps: int
    metric: Metric
    verify_top: int
    recompute_softmax: bool = False
    drop_layers: bool = False
    edges: int | None = None
    rows: tuple[tuple[int, ...], ...] | None = None

    @property
    def integrated(self) -> bool:
        """Whether gradients are taken at several points between the two prompts."""
        return self.integration_steps > 1

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are read."""
        return self.recompute_softmax or not PAIRWISE.isdisjoint(self.components)

    @property
    def compared(self) -> frozenset[Component]:
        """The components within a block whose values are compared; a kept run has the others."""
        wanted = IN_BLOCK & set(self.components)
        if self.recompute_softmax:
            wanted |= set(RECOMPUTED)
        return wanted if self.edges is None else wanted | EDGE_ENDS

    def lowest_block(self, layers: int) -> int:
        """The lowest block that gradients have to pass; `layers`: none.

        The stream that leaves block 0 has its gradient once block 1 has been passed.
        """
        if self.compared or {Component.RESIDUAL_PRE, Component.TOKEN_EMBEDDING} & set(self.components):
            return 0
        return min(1, layers) if Component.RESIDUAL_POST in self.components else layers

    def places_per_layer(self, component: Component, model: Sized) -> int:
        """How many places of a component are estimated at one position of one layer."""
        return model.units(component) if component in UNIT_SWEPT else 1

    def runs(self, asked: Asked, model: Sized) -> int:
        """Passes through the model, forwards or backwards, whole or in part."""
        # The two prompts, and the source's values that are compared. The prompt's own come with its gradient.
        prompts = 4 if self.integrated else 3
        forward = 2 if self.integrated else 1
        backward = asked.columns * (model.layers if self.drop_layers else 1)
        verified = self.verify_top + 1 if self.verify_top else 0
        return prompts + self.integration_steps * (forward + backward) + verified

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """An estimate for each place and target, the edges with their ends, and both numbers of what is verified."""
        numbers = 2 * self.verify_top * asked.columns
        for component in self.components:
            layers = 1 if component in LAYERLESS else model.layers
            positions = asked.tokens if self.rows is None else len(self.rows)
            numbers += layers * positions * self.places_per_layer(component, model) * asked.columns
        if self.edges is not None:
            numbers += min(self.edges or model.edges(), model.edges()) * (6 + asked.columns)
        return FLOAT * numbers

    def restarts(self, asked: Asked, model: Sized) -> Restarts:
        """The runs between the prompts; and one that verifies a place of each component, the shortest that there is."""
        found: dict[Extent, int] = {}
        first = self._first_difference(asked)
        if self.integrated and first < asked.tokens:
            found[Extent.whole(model.layers, asked.tokens, first)] = self.integration_steps
        if self.verify_top:
            found |= dict.fromkeys(self._patched(asked.position, asked, model), 1)
        return found

    def cost(self, asked: Asked, model: Sized, _restarts: Restarts) -> Cost:
        """The cost before anything runs; of what is verified, the most that it can take."""
        layers, length, full = model.layers, asked.position + 1, asked.tokens * model.layers
        blocks = layers - self.lowest_block(layers)
        backward = blocks * (blocks + 1) // 2 if self.drop_layers else blocks
        work = full + (full if self.source.tokens != asked.prompt.tokens else 0)
        work += self.integration_steps * length * (blocks + backward * asked.columns)
        if self.integrated:
            work += self.integration_steps * (asked.tokens - self._first_difference(asked)) * layers
        if self.compared:
            work += length * layers * (2 if self.integrated else 1)
        if self.verify_top:
            # Every place is in the lowest block at the first position, and the source is run again for its values.
            longest = max((extent.token_layers for extent in self._patched(0, asked, model)), default=0)
            work += self.verify_top * longest + full
        runs = self.runs(asked, model)
        return Cost(runs, work, runs * full, self.answer_bytes(asked, model))

    def _first_difference(self, asked: Asked) -> int:
        """The first position where the two prompts differ; the length of both where they are the same."""
        pairs = enumerate(zip(asked.prompt.tokens, self.source.tokens, strict=True))
        return min((number for number, (one, other) in pairs if one != other), default=asked.tokens)

    def _patched(self, position: int, asked: Asked, model: Sized) -> set[Extent]:
        """What the runs compute that patch a place of each component in the lowest block, at this position or a row."""
        rows = ((position,),) if self.rows is None else tuple(row for row in self.rows if row)
        return {
            extent_of([Place(component, 0, row)], (), asked.position, asked.tokens, model.layers)
            for component in self.components
            for row in rows
        }

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """Both prompts' runs and that of a step, the answer, the gradients, and what several steps share."""
        length, targets = asked.position + 1, asked.columns
        passes = targets * (model.layers if self.drop_layers else 1)
        numbers = 2 * passes * length * model.hidden_size
        for component in self.compared:
            values = prod(model.selected_shape(component, None, length, length))
            # One block's values of both runs, and their gradients; with several steps, the values of every block.
            numbers += values * (2 + passes + (2 * model.layers if self.integrated else 0))
        if self.edges is not None:
            written = model.heads * model.head_size + model.hidden_size
            read = (model.heads + 2 * model.key_value_heads) * model.head_size + model.hidden_size
            numbers += model.layers * length * (2 * written + targets * read)
        sums = 0 if self.edges is None else 2 * EDGE_CHUNK_BYTES + DOUBLE * targets * model.edges()
        states = (2 + self.integrated) * state_bytes(asked.tokens, model)
        return states + FLOAT * numbers + sums + self.answer_bytes(asked, model)


@dataclass(frozen=True, slots=True, eq=False)
class Attributions(Answer):
    """Some estimates of one component: [layers, positions, targets]; units before targets if it is swept by unit.

    `counts`: of a reduction, how many cases each row is over.
    """

    component: Component
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    estimates: Floats
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EdgeAttributions(Answer):
    """Edges from `offset` on, in order: component, layer and head of both ends [n, 3], estimates [n, targets]."""

    offset: int
    senders: Integers
    receivers: Integers
    estimates: Floats


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedEffect(Answer):
    """The estimate of one place, and the measured effect of patching it, by target."""

    site: Site
    estimated: Floats
    measured: Floats
