"""What single heads read and write: each with no more than its own part of the weights.

A projection to all heads is a matrix product, of which a head has its own rows; of the projection from all heads it has
its own columns. Where the weights can be had, they are applied head by head. So heads that each read a stream of their
own take no more work together than heads that read the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .packing import Packed
from .projections import Heads, Order, Project, Projected

# By kind (queries, keys, values) and head: which stream it reads; None: it is not asked for.
Streams = tuple[Sequence[int | None], Sequence[int | None], Sequence[int | None]]


def project_reads(project: Project, attention: nn.Module, normed: Tensor, heads: Heads, streams: Streams) -> Projected:
    """Queries [N, H, d], keys and values [N, K, d], each head's of the stream [V, N, D] that it reads.

    Heads that are not asked for have values without meaning.
    """
    if project.order is not None:
        order = project.order(heads)
        if all(_weights(attention.get_submodule(name), normed) is not None for name in order):
            # The projection itself is asked, so that norms and clamps which follow are its own.
            return project(_Reading(attention, normed, heads, order, streams), normed[0], heads)
    found = [part.unflatten(0, normed.shape[:2]) for part in project(attention, normed.flatten(0, 1), heads)]
    query, key, value = (
        torch.stack([part[stream or 0, :, head] for head, stream in enumerate(of)], 1)
        for part, of in zip(found, streams, strict=True)
    )
    return query, key, value


def write_heads(projection: nn.Module, moves: Tensor, units: Sequence[int], heads: Heads) -> Tensor:
    """What the output projection makes of changes [E, N, d] of single heads, each alone: [E, N, D], with no bias."""
    weights = _weights(projection, moves)
    if weights is not None:
        # [D, H x d] as [H, d, D].
        by_head = weights[0].t().unflatten(0, (heads.query, heads.size))
        product: Tensor = moves @ by_head[torch.tensor(list(units), device=moves.device)]
        return product
    mixed = moves.new_zeros(1 + len(units) * moves.shape[1], heads.query, heads.size)
    each = mixed[1:].view(len(units), -1, heads.query, heads.size)
    for number, unit in enumerate(units):
        each[number, :, unit] = moves[number]
    output = projection(mixed.flatten(1))
    written: Tensor = (output[1:] - output[:1]).view(len(units), moves.shape[1], -1)
    return written


def _weights(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The weights [out, in] and the bias of a linear layer; None if its product is not simply theirs, or not here."""
    plain = module.plain if isinstance(module, Packed) else module
    if type(plain).forward not in (nn.Linear.forward, Conv1D.forward) or hasattr(plain, "_hf_hook"):
        return None
    weight: Tensor = plain.weight  # type: ignore[assignment]
    bias: Tensor | None = plain.bias  # type: ignore[assignment]
    if weight.device != like.device or weight.dtype != like.dtype:
        return None
    return (weight.t() if isinstance(plain, Conv1D) else weight), bias


@dataclass(frozen=True, slots=True)
class _Product:
    """A linear layer that computes each head from the stream which it reads."""

    weight: Tensor
    bias: Tensor | None
    normed: Tensor
    size: int
    streams: Sequence[int | None]

    def __call__(self, _normed: Tensor) -> Tensor:
        streams = self.normed.unbind()
        parts = []
        for stream, run in groupby(range(len(self.streams)), key=self.streams.__getitem__):
            numbers = list(run)
            rows = slice(numbers[0] * self.size, (numbers[-1] + 1) * self.size)
            if stream is None:
                parts.append(self.normed.new_zeros(self.normed.shape[1], rows.stop - rows.start))
                continue
            bias = None if self.bias is None else self.bias[rows]
            parts.append(nn.functional.linear(streams[stream], self.weight[rows], bias))
        return torch.cat(parts, 1)


class _Reading(nn.Module):
    """An attention module whose projections read several streams."""

    def __init__(self, attention: nn.Module, normed: Tensor, heads: Heads, order: Order, streams: Streams) -> None:
        super().__init__()
        self._products = {}
        self._whole = (attention,)
        for name, units in order.items():
            weights = _weights(attention.get_submodule(name), normed)
            assert weights is not None
            of = [streams[kind][head] for kind, head in units]
            self._products[name] = _Product(*weights, normed, heads.size, of)

    def get_submodule(self, target: str) -> nn.Module:
        """The product of this name, or the module's own part."""
        return self._products.get(target) or self._whole[0].get_submodule(target)  # type: ignore[return-value]
