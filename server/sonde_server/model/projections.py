"""How attention modules make queries, keys and values of packed tokens.

A projection takes the attention module and the normed stream [N, D], and gives queries [N, H, d], keys and values
[N, K, d]; families with rotary positions then rotate queries and keys. Only modules are called, weights never
touched, so that weights may lie wherever a module fetches them from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads there are, and how wide one is."""

    query: int
    key_value: int
    size: int


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of the tokens' positions, [N, r]; r may be less than a head's size."""

    cosine: Tensor
    sine: Tensor


Projected = tuple[Tensor, Tensor, Tensor]
Project = Callable[[nn.Module, Tensor, Heads], Projected]
Rotate = Callable[[Tensor, Rotation], Tensor]


def separate(query: str, key: str, value: str) -> Project:
    """One module for each."""

    def project(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        q, k, v = (attention.get_submodule(name)(normed) for name in (query, key, value))
        return (
            q.unflatten(-1, (heads.query, heads.size)),
            k.unflatten(-1, (heads.key_value, heads.size)),
            v.unflatten(-1, (heads.key_value, heads.size)),
        )

    return project


def fused(name: str) -> Project:
    """One module that gives all queries, then all keys, then all values."""

    def project(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        sizes = [heads.query * heads.size, heads.key_value * heads.size, heads.key_value * heads.size]
        q, k, v = attention.get_submodule(name)(normed).split(sizes, dim=-1)
        return (
            q.unflatten(-1, (heads.query, heads.size)),
            k.unflatten(-1, (heads.key_value, heads.size)),
            v.unflatten(-1, (heads.key_value, heads.size)),
        )

    return project


def rotate_halves(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotates [N, heads, d] by the tokens' angles; the first half of the dimensions is paired with the second."""
    half = heads.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return heads * rotation.cosine.unsqueeze(1) + turned * rotation.sine.unsqueeze(1)
