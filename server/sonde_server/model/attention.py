"""What a family adds to plain attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# From a number of keys, and a tensor of the type and device at work: what is added to the scaled scores, [H, keys].
KeyBias = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """How queries, keys and values are put together in one block.

    Scores are queries times keys times `scaling`, capped by `softcap` (c tanh(score / c)), with `key_bias` added. A
    query sees `sliding_window` keys, its own included. `sinks` [H] are scores that take part in the softmax and get
    no value: a pattern then sums to less than 1.
    """

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    key_bias: KeyBias | None = None
    sinks: Tensor | None = None

    @property
    def explicit(self) -> bool:
        """Whether no fused kernel computes this."""
        return self.softcap is not None or self.sinks is not None


@dataclass(frozen=True, slots=True)
class LinearBias:
    """Attention with linear biases (Press et al. 2021, arXiv 2108.12409): a slope per head, times the key's position.

    It is counted from the first key and not from the query, which the softmax cannot tell apart. `dtype` is what the
    slopes are rounded to, as a family's own code may do; `scaling` multiplies the product.
    """

    heads: int
    dtype: torch.dtype = torch.float32
    scaling: float = 1.0

    def __call__(self, keys: int, like: Tensor) -> Tensor:
        """What is added to the scores of so many keys, [H, keys]."""
        slopes = linear_bias_slopes(self.heads).to(self.dtype)
        products = (slopes[:, None] * torch.arange(keys)).to(like.dtype)
        return (products * self.scaling).to(like.device)


def linear_bias_slopes(heads: int) -> Tensor:
    """The slope of each head, [H] float32: a geometric sequence, filled up from that of twice as many heads."""
    power = 1 << (heads.bit_length() - 1)
    slopes = _geometric(power, torch.arange(1, power + 1))
    if power < heads:
        others = _geometric(2 * power, torch.arange(1, 2 * (heads - power), 2))
        slopes = torch.cat([slopes, others])
    return slopes


def _geometric(heads: int, powers: Tensor) -> Tensor:
    return torch.pow(torch.tensor(2.0 ** (-8.0 / heads)), powers)
