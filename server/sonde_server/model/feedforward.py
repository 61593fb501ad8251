"""How a block's MLP is run on packed tokens: from the block and the normed stream [N, D] to [N, D]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

FeedForward = Callable[[nn.Module, Tensor], Tensor]


def feed_forward(path: str = "mlp") -> FeedForward:
    """A module that takes hidden states alone. One with a router also gives its scores, which are left."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        output = block.get_submodule(path)(normed.unsqueeze(0))
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first[0]

    return run


def adding_feed_forward(path: str = "mlp") -> FeedForward:
    """A module that adds the residual stream it is given; here it is given none."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        states = normed.unsqueeze(0)
        output: Tensor = block.get_submodule(path)(states, torch.zeros_like(states))
        return output[0]

    return run


def in_a_row(*paths: str) -> FeedForward:
    """Modules of the block itself, one after the other."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        states = normed.unsqueeze(0)
        for path in paths:
            states = block.get_submodule(path)(states)
        return states[0]

    return run
