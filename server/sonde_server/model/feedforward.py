"""Ways to run a block's MLP on packed tokens: from the block and the normed stream [N, D] to [N, D]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

FeedForward = Callable[[nn.Module, Tensor], Tensor]


def feed_forward(path: str = "mlp") -> FeedForward:
    """One module that takes only hidden states. A router's scores, where the module returns them too, are dropped."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        output = block.get_submodule(path)(normed.unsqueeze(0))
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first[0]

    return run


def adding_feed_forward(path: str = "mlp") -> FeedForward:
    """One module that adds a residual stream to its output; it is given zeros here."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        states = normed.unsqueeze(0)
        output: Tensor = block.get_submodule(path)(states, torch.zeros_like(states))
        return output[0]

    return run


def in_a_row(*paths: str) -> FeedForward:
    """Several modules of the block, one after another."""

    def run(block: nn.Module, normed: Tensor) -> Tensor:
        states = normed.unsqueeze(0)
        for path in paths:
            states = block.get_submodule(path)(states)
        return states[0]

    return run
