"""The estimates of attribution patching, summed up block by block, from the last block to the first."""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...engine import State
from ...engine.gradients import Descent, Differentiated, Values
from ...questions.answers import Floats, Progress
from ...questions.attribution_patching import (
    RECOMPUTED,
    AttributionPatching,
    Attributions,
    Integration,
)
from ...questions.places import LAYERLESS, PAIRWISE, UNIT_SWEPT, Component, Site
from ...questions.prompts import Target, first_difference
from ...sharing.session import Session
from .edges import Edges
from .embeddings import between
from .senders import Senders
from .softmax import key_effects, query_effects


class Estimates:
    """The sums so far, by component: [layers, positions, targets], with units before targets if it is swept by unit."""

    def __init__(self, method: AttributionPatching, session: Session, tokens: int, targets: int) -> None:
        self._rows = method.rows
        self.arrays: dict[Component, Floats] = {}
        for component in method.components:
            layers = 1 if component in LAYERLESS else session.layers
            units = (session.decoder.units(component),) if component in UNIT_SWEPT else ()
            self.arrays[component] = np.zeros((layers, tokens, *units, targets), np.float32)

    def add(self, component: Component, layer: int, first: int, found: Tensor) -> None:
        """Adds estimates [targets, positions, ...] of the positions from `first` on."""
        values = found.movedim(0, -1).cpu().numpy()
        self.arrays[component][layer, first : first + len(values)] += values

    def parts(self, component: Component) -> Iterator[Attributions]:
        """The estimates of one component, layer by layer."""
        array = self._places(component)
        for layer in range(len(array)):
            layers = () if component in LAYERLESS else (layer,)
            yield Attributions(component, layers, tuple(range(array.shape[1])), array[layer : layer + 1])

    def _places(self, component: Component) -> Floats:
        """The estimates of every place: what several positions make up has the sum of theirs."""
        array = self.arrays[component]
        if self._rows is None:
            return array
        places = np.zeros((len(array), len(self._rows), *array.shape[2:]), np.float32)
        for number, row in enumerate(self._rows):
            places[:, number] = array[:, list(row)].sum(1)
        return places

    def largest(self, count: int) -> list[tuple[Site, Floats]]:
        """The places of the largest estimates by the first target, and their estimates by target."""
        found: list[tuple[float, Site, Floats]] = []
        for component in self.arrays:
            array = self._places(component)
            rows = self._rows or tuple((position,) for position in range(array.shape[1]))
            sizes = np.abs(array[..., 0])
            # A name without positions is no place.
            sizes[:, [number for number, row in enumerate(rows) if not row]] = -1
            for flat in np.argsort(-sizes, axis=None, kind="stable")[:count]:
                layer, place, *unit = (int(i) for i in np.unravel_index(flat, sizes.shape))
                if rows[place]:
                    site = Site(component, (layer,), tuple(unit) or None, rows[place])
                    found.append((float(sizes.flat[flat]), site, array[(layer, place, *unit)]))
        found.sort(key=lambda one: -one[0])
        return [(site, estimated) for _, site, estimated in found[:count]]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Gradients [W, targets, n, ...] of W kinds of passes, each with the number of passes that share it.

    If no layer is dropped, there is one pass. Else the first kind is that of all passes that will drop a layer further
    down, which are the same so far; the others have dropped theirs.
    """

    values: Tensor
    weights: tuple[float, ...]

    def of(self, found: Tensor) -> "Gradients":
        """The gradients of another component in the same passes: `found` [W x targets, ...]."""
        return Gradients(found.unflatten(0, self.values.shape[:2]), self.weights)


class Estimation:
    """Everything that is estimated for one question."""

    def __init__(
        self,
        method: AttributionPatching,
        targets: tuple[Target, ...],
        position: int,
        session: Session,
        base: State,
        source: State,
    ) -> None:
        self.method = method
        self.targets = targets
        self.session = session
        self.engine = session.engine
        self.length = position + 1
        self.base = session.descent(base, self.length)
        self.source = session.descent(source, self.length)
        self.estimates = Estimates(method, session, len(base.tokens), len(targets))
        self.edges: Edges | None = None
        if method.edges is not None:
            self.edges = Edges(session, first_difference(base, source), self.length, len(targets))
        self._senders = Senders(session.decoder, base, source)
        self._mixes: dict[int, Tensor] = {}
        self._compared = method.compared
        self._prompts: dict[int, tuple[Values, Values]] = {}
        self._factor = 1 / method.passes
        if method.drop_layers:
            self._factor = 1 / max(1, self.session.layers - 1)

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Every backward pass, block by block; each block is one call on the model's thread."""
        layers, passes = self.session.layers, self.method.passes
        low = self.method.lowest_block(layers)
        done, total = 0, passes * (layers - low + 1)
        yield Progress(done, total)
        for number in range(passes):
            descent = await self._descent(number)
            gradients = await self.session.call(partial(self._top, descent), positions=layers)
            for layer in range(layers - 1, low - 1, -1):
                block = partial(self._block, descent, layer, gradients)
                gradients = await self.session.call(block, positions=self._positions(len(gradients.weights)))
                done += 1
                yield Progress(done, total)
            if Component.TOKEN_EMBEDDING in self.method.components:
                await self.session.call(partial(self._entrance, descent, gradients), positions=1)
            if self.edges is not None:
                for cut in self.edges.cuts:
                    await self.session.call(partial(self._products, self.edges, descent, cut))
            done += 1
            yield Progress(done, total)

    async def _descent(self, number: int) -> Descent:
        """The run that a backward pass is through."""
        if self.method.integration is Integration.ENDS:
            return (self.base, self.source)[number]
        if not self.method.integrated:
            return self.base
        share = (number + 0.5) / self.method.integration_steps
        work = partial(between, self.session, self.base, self.source, share)
        return await self.session.call(work, positions=len(self.base.state.tokens))

    def _positions(self, kinds: int) -> int | None:
        """How many positions through all blocks take as long as one block, forwards and `kinds` times backwards.

        None for edges, which take memory for every sender and receiver.
        """
        if self.edges is not None:
            return None
        passes = (1 + 2 * kinds * len(self.targets)) * self.length
        return -(-passes // self.session.layers)

    # ------------------------------------------------------------ calls on the model's thread

    def _top(self, descent: Descent) -> Gradients:
        top = descent.top(self.targets, self.method.metric)
        weight = float(self.session.layers) if self.method.drop_layers else 1.0
        gradients = Gradients(top.below[None], (weight,))
        if self.edges is not None:
            self.edges.top(top.below)
        for component in (Component.FINAL_NORM, Component.LOGITS):
            if component in self.method.components:
                found = gradients.of(top.gradients[component])
                ends = self.base.end()[component], self.source.end()[component]
                self._add(component, 0, found, ends, self.length - 1)
        self._stream(self.session.layers, gradients)
        return gradients

    def _block(self, descent: Descent, layer: int, above: Gradients) -> Gradients:
        wanted = self._compared
        if self.method.recompute_softmax:
            wanted |= {Component.ATTENTION_PATTERN}
        done = descent.block(layer, above.values.flatten(0, 1), wanted, mlp_input=self.edges is not None)
        passes = above
        if self.method.drop_layers:
            # The pass that drops this layer has no gradient in it, and from here on is a kind of its own.
            passes = Gradients(above.values, (above.weights[0] - 1, *above.weights[1:]))
        if self._compared:
            prompt, source = self._values(layer, done.values)
            self._within(layer, done, passes, prompt, source)
            if self.edges is not None:
                self._senders.take(layer, prompt, source)
                self._mixes[layer] = done.values[Component.HEAD_OUT]
                self.edges.take(layer, done)
        below = passes.of(done.below)
        if self.method.drop_layers:
            # Blocks may be on different devices.
            dropped = above.values[:1].to(below.values.device)
            below = Gradients(torch.cat([below.values, dropped]), (*below.weights, 1.0))
            if Component.RESIDUAL_MID in self.method.components:
                ends = prompt[Component.RESIDUAL_MID], source[Component.RESIDUAL_MID]
                self._add(Component.RESIDUAL_MID, layer, Gradients(dropped, (1.0,)), ends)
        self._stream(layer, below)
        return below

    def _stream(self, depth: int, gradients: Gradients) -> None:
        """Adds the stream before block `depth`, which is also the stream after the block below it."""
        prompt, source = self.base.state.residual[depth], self.source.state.residual[depth]
        for component, layer in ((Component.RESIDUAL_POST, depth - 1), (Component.RESIDUAL_PRE, depth)):
            if component in self.method.components and 0 <= layer < self.session.layers:
                self._add(component, layer, gradients, (prompt[: self.length], source[: self.length]))

    def _entrance(self, descent: Descent, gradients: Gradients) -> None:
        found = gradients.of(descent.entrance(gradients.values.flatten(0, 1)))
        ends = self.base.state.embedding[: self.length], self.source.state.embedding[: self.length]
        self._add(Component.TOKEN_EMBEDDING, 0, found, ends)

    def _products(self, edges: Edges, descent: Descent, cut: slice) -> None:
        with torch.inference_mode(mode=False):
            edges.add(descent.state, self._senders.every(self._mixes, cut), 0, cut)

    # ------------------------------------------------------------ sums

    def _values(self, layer: int, own: Values) -> tuple[Values, Values]:
        """The values that are compared in a block, of the prompt and of the source. All passes share them."""
        if layer in self._prompts:
            return self._prompts[layer]
        # The first pass is through the prompt's own run, but for steps between the two prompts.
        prompt = {name: own[name] for name in self._compared}
        if self.method.integrated:
            prompt = self.base.values(layer, self._compared)
        found = prompt, self.source.values(layer, self._compared)
        if self.method.passes > 1:
            self._prompts[layer] = found
        return found

    def _within(self, layer: int, done: Differentiated, passes: Gradients, prompt: Values, source: Values) -> None:
        for component in self._compared & set(self.method.components):
            if self.method.recompute_softmax and component in RECOMPUTED:
                effects = query_effects if component is Component.QUERY else key_effects
                query, key = prompt[Component.QUERY], prompt[Component.KEY]
                by_pattern = done.gradients[Component.ATTENTION_PATTERN][:, 0]
                found = effects(self.base, layer, query, key, source[component], by_pattern)
                self._sum(component, layer, passes.of(found), 0)
            else:
                gradients = passes.of(done.gradients[component])
                self._add(component, layer, gradients, (prompt[component], source[component]))

    def _add(
        self, component: Component, layer: int, gradients: Gradients, ends: tuple[Tensor, Tensor], first: int = 0
    ) -> None:
        """Adds (source - prompt) . gradient. `ends`: the values of the prompt and of the source."""
        difference = ends[1].float() - ends[0].float()
        if component in PAIRWISE:
            # A masked score is -infinity in both.
            difference = difference.nan_to_num(0.0, 0.0, 0.0)
        products = gradients.values.float() * difference
        if component in PAIRWISE:
            products = products.sum(-1)[:, :, 0].transpose(-1, -2)
        elif component is not Component.NEURON:
            products = products.sum(-1)
        self._sum(component, layer, Gradients(products, gradients.weights), first)

    def _sum(self, component: Component, layer: int, found: Gradients, first: int) -> None:
        """Adds estimates [W, targets, n, ...]; where layers are dropped, their absolute values."""
        values = found.values.float()
        if self.method.drop_layers:
            weights = torch.tensor(found.weights, device=values.device)
            total = torch.tensordot(weights, values.abs(), 1)
        else:
            total = values[0]
        self.estimates.add(component, layer, first, total * self._factor)
