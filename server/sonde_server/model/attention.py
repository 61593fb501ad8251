"""The settings in which families differ from plain scaled dot-product attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# From a number of keys and a tensor of the wanted type and device to a bias of the scaled scores, [H, keys].
KeyBias = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """How one block combines queries, keys and values.

    Scores are the products of queries and keys times `scaling`, capped by `softcap` (c tanh(score / c)), plus
    `key_bias`. A query sees `sliding_window` keys, including its own. `sinks` [H] are additional scores in the softmax
    that have no value, so that the weights of a query sum to less than 1.
    """

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    key_bias: KeyBias | None = None
    sinks: Tensor | None = None

    @property
    def explicit(self) -> bool:
        """Whether attention must be computed step by step, because no fused kernel supports these settings."""
        return self.softcap is not None or self.sinks is not None


@dataclass(frozen=True, slots=True)
class LinearBias:
    """Attention with linear biases (Press et al. 2021, arXiv 2108.12409): a slope per head times the key's position.

    Positions are counted from the first key instead of from the query; the softmax is the same for both. The slopes
    are rounded to `dtype`, as some models round them, and the product is multiplied by `scaling`.
    """

    heads: int
    dtype: torch.dtype = torch.float32
    scaling: float = 1.0

    def __call__(self, keys: int, like: Tensor) -> Tensor:
        """The bias of the scores, [H, keys]."""
        slopes = linear_bias_slopes(self.heads).to(self.dtype)
        products = (slopes[:, None] * torch.arange(keys)).to(like.dtype)
        return (products * self.scaling).to(like.device)


def linear_bias_slopes(heads: int) -> Tensor:
    """The slope of each head, [H] float32.

    For a power of two of heads a geometric sequence; the others take every second slope of the next power's.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = _geometric(power, torch.arange(1, power + 1))
    if power < heads:
        others = _geometric(2 * power, torch.arange(1, 2 * (heads - power), 2))
        slopes = torch.cat([slopes, others])
    return slopes


def _geometric(heads: int, powers: Tensor) -> Tensor:
    return torch.pow(torch.tensor(2.0 ** (-8.0 / heads)), powers)
