"""Edges with the gradients taken along the line between each sender's own two values (EAP-IG activations).

Hanna, Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024, arXiv 2403.17806). Senders take turns: the token
embeddings, then in each block all heads together, then the MLP. At each of m points (k + 1/2) / m of the line, the
midpoint rule, the prompt's run goes on with the sender changed, and its gradients are those of the edges of this sender
alone. So with many steps the edges of the senders of one turn add up to what patching them together really does.

The authors' program (github.com/hannamw/EAP-IG) takes the points k / m instead, and its scores of an edge are means
over the runs of all turns, also those in which a component is changed that is not the edge's.

Nothing below a sender changes, so a run and its gradients only take the blocks above it, and where heads are changed
the MLP that reads them.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...engine import Change, PlacedEdit, State
from ...engine.gradients import Descent
from ...engine.layout import Row
from ...questions.answers import Progress
from ...questions.attribution_patching import AttributionPatching, Turn
from ...questions.extents import Extent
from ...questions.places import EDGE_ENDS, Component
from ...questions.prompts import Target, first_difference
from ...sharing.session import Session
from .edges import Edges
from .embeddings import between
from .senders import Senders

WRITTEN = frozenset({Component.HEAD_OUT, Component.MLP_OUT})


@dataclass(frozen=True, slots=True, eq=False)
class _Changed:
    """A run with a sender changed; of heads, also their mixes [n, H, d] in it, and the stream [n, D] behind them."""

    descent: Descent
    mixed: Tensor | None = None
    middle: Tensor | None = None


class Activations:
    """The edges of one question."""

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
        self.decoder = session.decoder
        self.length = position + 1
        self.first = min(first_difference(base, source), self.length)
        self.base = session.descent(base, self.length)
        self.source = session.descent(source, self.length)
        self.edges = Edges(session, self.first, self.length, len(targets))
        self._senders = Senders(session.decoder, base, source)
        # The prompt's mixes of the heads, by layer.
        self._mixes: dict[int, Tensor] = {}

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Every turn, step by step and block by block; each block is one call on the model's thread."""
        call, layers, steps = self.session.call, self.session.layers, self.method.integration_steps
        turns = list(Turn.every(layers))
        done, total = 0, layers + steps * sum(layers - turn.above + 1 for turn in turns)
        yield Progress(done, total)
        for layer in range(layers):
            await call(partial(self._values, layer))
            done += 1
            yield Progress(done, total)
        for turn, share in ((turn, (step + 0.5) / steps) for turn in turns for step in range(steps)):
            changed = await call(partial(self._change, turn, share))
            gradients = await call(partial(self._top, changed.descent))
            for layer in range(layers - 1, turn.above - 1, -1):
                gradients = await call(partial(self._block, changed.descent, layer, gradients))
                done += 1
                yield Progress(done, total)
            await call(partial(self._finish, turn, changed, gradients))
            done += 1
            yield Progress(done, total)

    # ------------------------------------------------------------ the run with a sender changed

    def _values(self, layer: int) -> None:
        prompt, source = (end.values(layer, WRITTEN) for end in (self.base, self.source))
        self._mixes[layer] = prompt[Component.HEAD_OUT]
        self._senders.take(layer, prompt, source)

    def _change(self, turn: Turn, share: float) -> _Changed:
        """The prompt's run with the sender moved by `share` of the way to its value in the source's."""
        cut = slice(self.first, self.length)
        if self.first == self.length:
            return _Changed(self.base)
        if turn.component is Component.TOKEN_EMBEDDING:
            return _Changed(between(self.session, self.base, self.source, share))
        with torch.inference_mode(mode=False), torch.no_grad():
            if turn.component is Component.HEAD_OUT:
                return self._change_heads(turn, share, cut)
            stream = self.base.state.residual[turn.above][cut]
            return _Changed(self._go_on(turn.above, _moved(stream, self._senders.mlp(turn.layer, cut)[0], share)))

    def _change_heads(self, turn: Turn, share: float, cut: slice) -> _Changed:
        base, decoder, layer = self.base.state, self.decoder, turn.layer
        mixed = _moved(self._mixes[layer], self._senders.mixes(layer, slice(0, self.length)), share)
        attention = decoder.attention_output(layer, mixed[cut])
        if decoder.parallel:
            # The MLP reads what enters the block, which is as in the prompt's run.
            unchanged = decoder.attention_output(layer, self._mixes[layer][cut])
            return _Changed(self._go_on(turn.above, base.residual[turn.above][cut] + (attention - unchanged)), mixed)
        middle = base.residual[layer][cut] + attention
        leaving = middle + decoder.mlp_output(layer, middle)
        self.session.engine.work.token_layers += len(middle)
        return _Changed(self._go_on(turn.above, leaving), mixed, middle)

    def _go_on(self, above: int, stream: Tensor) -> Descent:
        """The prompt's run from block `above` on, where the stream that enters it is `stream` from `first` on."""
        base, layers = self.base.state, self.session.layers
        state = State(base.tokens, image=base.image)
        stream = self.decoder.place(stream, above)
        if above == layers:
            state.residual = [torch.cat([base.residual[above][: self.first], stream])]
        else:
            positions = tuple(range(self.first, self.length))
            edit = PlacedEdit(Component.RESIDUAL_PRE, above, positions, None, Change("set", stream))
            extent = Extent(above, layers, self.first, self.length, positions)
            self.session.engine.execute([Row(base.tokens, base, extent, (edit,), state=state)])
        state.residual = [*base.residual[:above], *state.residual]
        return self.session.descent(state, self.length)

    # ------------------------------------------------------------ its gradients

    def _top(self, descent: Descent) -> Tensor:
        below = descent.top(self.targets, self.method.metric).below
        self.edges.top(below)
        return below

    def _block(self, descent: Descent, layer: int, above: Tensor) -> Tensor:
        done = descent.block(layer, above, EDGE_ENDS, mlp_input=True)
        self.edges.take(layer, done)
        return done.below

    def _finish(self, turn: Turn, changed: _Changed, gradients: Tensor) -> None:
        """The MLP that reads the heads of this turn, and the sender's products with all gradients."""
        if changed.middle is not None:
            self.edges.take_mlp(turn.layer, self._through_mlp(turn.layer, changed.middle, gradients))
        number = self._number(turn)
        for cut in self.edges.cuts:
            self.edges.add(changed.descent.state, self._written(turn, changed, cut), number, cut)

    def _through_mlp(self, layer: int, middle: Tensor, gradients: Tensor) -> Tensor:
        """Gradients [M, n, D] of what the MLP of a block reads, through it alone; 0 before the first change."""
        found = torch.zeros_like(gradients)
        with torch.inference_mode(mode=False), torch.enable_grad():
            read = middle.detach().requires_grad_()
            output = self.decoder.mlp_output(layer, read)
            for number, gradient in enumerate(gradients[:, self.first :]):
                (found[number, self.first :],) = torch.autograd.grad(output, read, gradient, retain_graph=True)
            self.session.engine.work.token_layers += (1 + len(gradients)) * len(middle)
        return found

    def _number(self, turn: Turn) -> int:
        if turn.component is Component.TOKEN_EMBEDDING:
            return 0
        heads = self.decoder.heads
        return 1 + turn.layer * (heads + 1) + (heads if turn.component is Component.MLP_OUT else 0)

    def _written(self, turn: Turn, changed: _Changed, cut: slice) -> Tensor:
        """What the senders of a turn write [S, c, D]."""
        with torch.inference_mode(mode=False):
            match turn.component:
                case Component.TOKEN_EMBEDDING:
                    found = self._senders.entering(cut)
                case Component.MLP_OUT:
                    found = self._senders.mlp(turn.layer, cut)
                case _:
                    assert changed.mixed is not None
                    found = self._senders.heads(turn.layer, changed.mixed, cut)
            return found.float()


def _moved(values: Tensor, moves: Tensor, share: float) -> Tensor:
    return (values.float() + share * moves.to(values.device).float()).to(values.dtype)
