"""Attribution patching: estimates of what every patch would do.

The cost, in positions x blocks: the runs of both prompts; then, for the positions up to the one that is read, each
block once with its graph, once backwards for each target, and the source's values once. With several integration steps,
each has its own run and its own backward pass, and the prompt's values are computed once as well. Dropping layers takes
L - l backward passes for each target in block l. For the places that are verified only an upper bound is known before.
The products for edges are not blocks, and are not counted.

Where senders take turns, each step of each turn has a run and a backward pass, both through the blocks above the sender
alone, the run from the first position on where the prompts differ. The MLP that reads the heads of a turn counts as a
block.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from .answers import Answer, Floats, Integers
from .costs import DOUBLE, EDGE_CHUNK_BYTES, FLOAT, Cost, state_bytes
from .extents import Extent, Restarts, extent_of, token_layers
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
from .prompts import Asked, Metric, Prompt, content_of, first_difference

# The components whose patches change the softmax of attention, which can be recomputed for them.
RECOMPUTED = (Component.QUERY, Component.KEY)


class Integration(enum.IntEnum):
    """Where gradients are taken: between the two embeddings, between each sender's values, or in both runs."""

    EMBEDDINGS = 0
    ACTIVATIONS = 1
    ENDS = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """The senders that are moved together: the token embeddings, all heads of a layer, or its MLP."""

    component: Component
    layer: int = 0

    @property
    def above(self) -> int:
        """The first block that reads them whole."""
        return 0 if self.component is Component.TOKEN_EMBEDDING else self.layer + 1

    @classmethod
    def every(cls, layers: int) -> "Iterator[Turn]":
        """All turns."""
        yield cls(Component.TOKEN_EMBEDDING)
        for layer in range(layers):
            yield cls(Component.HEAD_OUT, layer)
            yield cls(Component.MLP_OUT, layer)


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
    integration: Integration = Integration.EMBEDDINGS

    @property
    def integrated(self) -> bool:
        """Whether gradients are taken at several points between the two prompts."""
        return self.integration_steps > 1

    @property
    def passes(self) -> int:
        """How many gradients each estimate is the mean of."""
        return 2 if self.integration is Integration.ENDS else self.integration_steps

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
        turns = 1 + 2 * model.layers if self.integration is Integration.ACTIVATIONS else 1
        return prompts + turns * self.passes * (forward + backward) + verified

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
        if self.integration is Integration.ACTIVATIONS:
            found |= self._turns(asked, model)
        elif self.integrated and first < asked.tokens:
            found[Extent.whole(model.layers, asked.tokens, first)] = self.integration_steps
        if self.verify_top:
            found |= dict.fromkeys(self._patched(asked.position, asked, model), 1)
        return found

    def _turns(self, asked: Asked, model: Sized) -> dict[Extent, int]:
        """The runs with a sender changed, but for those that end with their sender."""
        found: dict[Extent, int] = {}
        first, end = self._first_difference(asked), asked.position + 1
        for turn in Turn.every(model.layers) if first < end else ():
            if turn.above < model.layers:
                extent = Extent(turn.above, model.layers, first, end, tuple(range(first, end)))
                if turn.component is Component.TOKEN_EMBEDDING:
                    extent = Extent.whole(model.layers, asked.tokens, first)
                found[extent] = found.get(extent, 0) + self.integration_steps
        return found

    def cost(self, asked: Asked, model: Sized, _restarts: Restarts) -> Cost:
        """The cost before anything runs; of what is verified, the most that it can take."""
        layers, length, full = model.layers, asked.position + 1, asked.tokens * model.layers
        blocks = layers - self.lowest_block(layers)
        backward = blocks * (blocks + 1) // 2 if self.drop_layers else blocks
        work = full + (full if content_of(self.source) != content_of(asked.prompt) else 0)
        if self.integration is Integration.ACTIVATIONS:
            work += self._work_of_turns(asked, model)
        else:
            work += self.passes * length * (blocks + backward * asked.columns)
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

    def _work_of_turns(self, asked: Asked, model: Sized) -> int:
        """Positions x blocks of all runs with a sender changed, and of their gradients."""
        length, passes = asked.position + 1, 1 + asked.columns
        backward = sum(model.layers - turn.above for turn in Turn.every(model.layers)) * length * passes
        changed = max(0, length - self._first_difference(asked))
        mlps = 0 if model.parallel else model.layers * changed * (1 + passes)
        return self.integration_steps * (backward + mlps) + token_layers(self._turns(asked, model))

    def _first_difference(self, asked: Asked) -> int:
        return first_difference(asked.prompt, self.source)

    def _patched(self, position: int, asked: Asked, model: Sized) -> set[Extent]:
        """What the runs compute that patch a place of each component in the lowest block, at this position or a row."""
        rows = ((position,),) if self.rows is None else tuple(row for row in self.rows if row)
        return {
            extent_of([Place(component, 0, row)], (), asked.position, asked.tokens, model.layers, sight=asked.sight)
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
            # One block's values of both runs, and their gradients; with several passes, the values of every block.
            numbers += values * (2 + passes + (2 * model.layers if self.passes > 1 else 0))
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
