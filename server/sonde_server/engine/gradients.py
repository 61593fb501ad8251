"""Gradients of numbers of the prediction, block by block from the top.

A kept run holds the stream before every block. So each block is run again from there, alone, with its graph, and
the gradient of the stream above it is taken through it to the stream below: at any time there is the graph of one
block, never that of the whole model. Positions after the one that is read have no gradient and are left out.

A block that is run again counts like any other run of it, and so does each backward pass through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.extents import Extent
from ..questions.places import PAIRWISE, Component
from ..questions.prompts import Metric, Target
from .attention import Block, attend
from .execute import Execution, Work
from .layout import Layout, Row
from .runs import State
from .visits import Place, Visits

Values = dict[Component, Tensor]


class Taps(Visits):
    """Holds on to the values of some components of one block as they go by; `entry` is the stream that enters it."""

    def __init__(self, layer: int, wanted: frozenset[Component]) -> None:
        super().__init__(())
        self.layer = layer
        self.wanted = wanted
        self.watched = frozenset((component, layer) for component in wanted & PAIRWISE)
        self.entry: Tensor | None = None
        self._packed: Values = {}

    @property
    def values(self) -> Values:
        """What went by."""
        return self._packed | {component: pairs for (component, _), pairs in self.seen.items()}

    def __contains__(self, place: Place) -> bool:
        return place[1] == self.layer and place[0] in self.wanted

    def visit(self, packed: Tensor, layout: Layout, component: Component, layer: int) -> Tensor:
        """Keeps a component; the stream that enters the block is the leaf of its graph."""
        if layer != self.layer or not layout.tokens:
            return packed
        if component is Component.RESIDUAL_PRE:
            self.entry = packed = packed.detach().requires_grad_(torch.is_grad_enabled())
        if component in self.wanted:
            self._packed[component] = packed
        return packed


@dataclass(slots=True, eq=False)
class Differentiated:
    """A block's values, and G gradients' continuations: by its components, [G, ...] each, and by what enters it.

    `below` [G, n, D]: of the stream that enters the block; `mlp_input` [G, n, D]: of what its MLP reads, through the
    MLP alone, where it was asked for.
    """

    values: Values
    gradients: Values
    below: Tensor
    mlp_input: Tensor | None = None


class Descent:
    """The way down through one kept run, over its first `length` positions; the last of them is read."""

    def __init__(self, decoder: Decoder, work: Work, state: State, length: int) -> None:
        self.decoder = decoder
        self.work = work
        self.state = state
        self.length = length

    def top(self, targets: Sequence[Target], metric: Metric) -> Differentiated:
        """Final norm and unembedding where the prediction is read, differentiated by each target's number.

        Values and gradients of FINAL_NORM [1, D] and LOGITS [1, V] are those of that position alone.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            stream = self.state.residual[-1][self.length - 1 : self.length].clone().requires_grad_()
            normed = self.decoder.norm(stream)
            logits = self.decoder.unembed(normed)
            columns: list[tuple[Tensor, ...]] = []
            for target in targets:
                number = measured(logits[0].float(), target, metric)
                columns.append(torch.autograd.grad(number, (normed, logits, stream), retain_graph=True))
            by_normed, by_logits, by_stream = (torch.stack(parts) for parts in zip(*columns, strict=True))
            below = by_stream.new_zeros(len(targets), self.length, stream.shape[1])
            below[:, -1:] = by_stream
            values = {Component.FINAL_NORM: normed.detach(), Component.LOGITS: logits.detach()}
            return Differentiated(values, {Component.FINAL_NORM: by_normed, Component.LOGITS: by_logits}, below)

    def block(
        self, layer: int, above: Tensor, wanted: frozenset[Component], *, mlp_input: bool = False
    ) -> Differentiated:
        """One block: `above` [G, n, D] are gradients of the stream that leaves it."""
        between = frozenset(
            {Component.MLP_OUT} if self.decoder.parallel else {Component.MLP_OUT, Component.RESIDUAL_MID}
        )
        with torch.inference_mode(mode=False), torch.enable_grad():
            taps, stream = self._run(layer, wanted | between if mlp_input else wanted)
            assert taps.entry is not None
            tapped = taps.values
            inputs = [taps.entry, *tapped.values()]
            columns: list[tuple[Tensor, ...]] = []
            reads: list[Tensor] = []
            for number, gradient in enumerate(above):
                if mlp_input:
                    read = tapped.get(Component.RESIDUAL_MID, taps.entry)
                    written = tapped[Component.MLP_OUT]
                    reads += torch.autograd.grad(written, read, gradient, retain_graph=True)
                again = number < len(above) - 1
                columns.append(
                    torch.autograd.grad(stream, inputs, gradient, retain_graph=again, materialize_grads=True)
                )
                self.work.token_layers += self.length
            below, *gradients = (torch.stack(parts) for parts in zip(*columns, strict=True))
        values = {name: value.detach() for name, value in tapped.items()}
        by_read = torch.stack(reads) if reads else None
        return Differentiated(values, dict(zip(values, gradients, strict=True)), below, by_read)

    def end(self) -> Values:
        """FINAL_NORM [1, D] and LOGITS [1, V] where the prediction is read."""
        with torch.inference_mode(mode=False), torch.no_grad():
            normed = self.decoder.norm(self.state.residual[-1][self.length - 1 : self.length].clone())
            return {Component.FINAL_NORM: normed, Component.LOGITS: self.decoder.unembed(normed)}

    def entrance(self, above: Tensor) -> Tensor:
        """Gradients [G, n, D] of the token embeddings, from those of the stream that enters the first block."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            embedding = self.state.embedding[: self.length].clone().requires_grad_()
            stream = self.decoder.enter(embedding, torch.arange(self.length, device=embedding.device))
            found = [torch.autograd.grad(stream, embedding, gradient, retain_graph=True)[0] for gradient in above]
            return torch.stack(found)

    def values(self, layer: int, wanted: frozenset[Component]) -> Values:
        """A block's values, without gradients."""
        with torch.inference_mode(mode=False), torch.no_grad():
            return self._run(layer, wanted)[0].values

    def pairs(self, layer: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and pattern [H, n, n] that queries [n, H, d] and keys [n, K, d] of any runs have together."""
        taps = Taps(layer, PAIRWISE)
        segment = Layout([self._row(layer)]).only_segment
        block = Block(layer, self.decoder.attention_settings(layer), taps)
        with torch.inference_mode(mode=False), torch.no_grad():
            attend(block, segment, query, key[None], torch.zeros_like(key)[None])
        scores, pattern = (taps.seen[component, layer][0] for component in sorted(PAIRWISE))
        return scores, pattern

    def _run(self, layer: int, wanted: frozenset[Component]) -> tuple[Taps, Tensor]:
        taps = Taps(layer, wanted)
        execution = Execution(self.decoder, [self._row(layer)], self.work, visits=taps)
        execution.run()
        return taps, execution.stream

    def _row(self, layer: int) -> Row:
        extent = Extent(layer, layer + 1, 0, self.length, tuple(range(self.length)))
        return Row(self.state.tokens, self.state, extent)


def measured(logits: Tensor, target: Target, metric: Metric) -> Tensor:
    """The number of a target in next-token logits [..., V]."""
    if metric is Metric.LOGIT:
        value = logits[..., target.token]
        return value if target.contrast is None else value - logits[..., target.contrast]
    log_probability = torch.log_softmax(logits, dim=-1)[..., target.token]
    return log_probability if metric is Metric.LOG_PROBABILITY else log_probability.exp()
