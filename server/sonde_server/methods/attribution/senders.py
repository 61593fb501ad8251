"""What the components that write to the stream write differently in the two prompts' runs."""

import torch
from torch import Tensor

from ...engine import State
from ...engine.gradients import Values
from ...model.anatomy import Decoder
from ...questions.places import Component
from .heads import written


class Senders:
    """Differences (source - prompt) of what enters the first block, of each head's mix of values, and of each MLP."""

    def __init__(self, decoder: Decoder, base: State, source: State) -> None:
        self.decoder = decoder
        self._states = base, source
        self._heads: dict[int, Tensor] = {}
        self._mlps: dict[int, Tensor] = {}

    def take(self, layer: int, prompt: Values, source: Values) -> None:
        """Learns a block's differences; once is enough."""
        if layer not in self._mlps:
            self._heads[layer] = source[Component.HEAD_OUT] - prompt[Component.HEAD_OUT]
            self._mlps[layer] = source[Component.MLP_OUT] - prompt[Component.MLP_OUT]

    def mixes(self, layer: int, cut: slice) -> Tensor:
        """The differences [c, H, d] of the mixes of a block's heads."""
        return self._heads[layer][cut]

    def entering(self, cut: slice) -> Tensor:
        """What enters the first block: [1, c, D]."""
        base, source = self._states
        return (source.residual[0][cut] - base.residual[0][cut])[None]

    def heads(self, layer: int, mixed: Tensor, cut: slice) -> Tensor:
        """What each head writes to first order, where a run has the mixes `mixed` [n, H, d]: [H, c, D]."""
        return written(self.decoder, layer, mixed[cut], self._heads[layer][cut])

    def mlp(self, layer: int, cut: slice) -> Tensor:
        """What the MLP writes: [1, c, D]."""
        return self._mlps[layer][None, cut]

    def every(self, mixes: dict[int, Tensor], cut: slice) -> Tensor:
        """All of them [S, c, D], in the order of their numbers, in a run with these mixes by layer."""
        found = [self.entering(cut)]
        for layer in range(self.decoder.layers):
            found += [self.heads(layer, mixes[layer], cut), self.mlp(layer, cut)]
        # Blocks may be on different devices.
        return torch.cat([one.to(found[0].device).float() for one in found])
