"""Rotary positions: computing cosines and sines, and rotating queries and keys by them.

Su et al. 2021, arXiv 2104.09864. Families differ in which dimensions form a pair, in how many dimensions are rotated,
and in whether the angles depend on the kind of layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of the tokens' positions, [N, r]. Only the first r dimensions of a head are rotated."""

    cosine: Tensor
    sine: Tensor

    def to(self, device: torch.device) -> "Rotation":
        """A copy on another device."""
        return Rotation(self.cosine.to(device), self.sine.to(device))


# By kind of layer; the only kind is "" in families that do not distinguish kinds.
Rotations = Mapping[str, Rotation]
# From the model, a tensor of the wanted type and device, and positions [N], or their times, rows and columns [3, N].
Rotary = Callable[[nn.Module, Tensor, Tensor], Rotations]
Rotate = Callable[[Tensor, Rotation], Tensor]


def rotary_module(path: str, kinds: Sequence[str] = ()) -> Rotary:
    """Cosines and sines from a module, by position and, where `kinds` are given, by kind of layer."""

    def rotary(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
        module, where = model.get_submodule(path), positions.unsqueeze(-2)
        if not kinds:
            return {"": _first(module(like.unsqueeze(0), where))}
        return {kind: _first(module(like.unsqueeze(0), where, kind)) for kind in kinds}

    return rotary


def _first(both: tuple[Tensor, Tensor]) -> Rotation:
    cosine, sine = both
    return Rotation(cosine[0], sine[0])


def changed(rotary: Rotary, change: Callable[[Tensor], Tensor]) -> Rotary:
    """Rearranges a module's cosines and sines into the layout that the rotation expects."""

    def changing(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
        made = rotary(model, like, positions)
        return {kind: Rotation(change(one.cosine), change(one.sine)) for kind, one in made.items()}

    return changing


def for_both_halves(angles: Tensor) -> Tensor:
    """[N, r / 2] to the layout [N, r] of `rotate_halves`."""
    return torch.cat((angles, angles), dim=-1)


def first_half_for_pairs(angles: Tensor) -> Tensor:
    """The layout [N, r] of `rotate_halves` to that of `rotate_pairs`."""
    return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, dim=-1)


def rotate_halves(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotates [N, heads, d]: dimension i of the first half forms a pair with dimension i of the second."""
    turned, rest = _cut(heads, rotation)
    half = turned.shape[-1] // 2
    other = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    return _turn(turned, other, rest, rotation)


def rotate_pairs(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotates [N, heads, d]: each even dimension forms a pair with the odd one after it."""
    turned, rest = _cut(heads, rotation)
    other = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    return _turn(turned, other, rest, rotation)


def rotate_pairs_in_float32(heads: Tensor, rotation: Rotation) -> Tensor:
    """Like `rotate_pairs`, computed in float32 and rounded once at the end."""
    return rotate_pairs(heads.float(), rotation).to(heads.dtype)


def _cut(heads: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    size = rotation.cosine.shape[-1]
    return heads[..., :size], heads[..., size:]


def _turn(turned: Tensor, other: Tensor, rest: Tensor, rotation: Rotation) -> Tensor:
    rotated = (turned * rotation.cosine.unsqueeze(1) + other * rotation.sine.unsqueeze(1)).to(turned.dtype)
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def rotate_by_length(
    rotary: Rotary, threshold: int, model: nn.Module, like: Tensor, positions: Tensor, lengths: Tensor
) -> Rotations:
    """Rotations of a model that uses other angles for prompts of more than `threshold` tokens (LongRoPE).

    The module chooses the angles by the last position that it is given, so short and long prompts are passed to it
    separately, each group with the last position of its longest prompt.
    """
    parts: list[tuple[Tensor, Rotations]] = []
    for group in (lengths <= threshold, lengths > threshold):
        chosen = group.nonzero()[:, 0]
        if len(chosen):
            asked = torch.cat([positions[chosen], lengths[chosen].max().reshape(1) - 1])
            parts.append((chosen, rotary(model, like, asked)))
    order = torch.argsort(torch.cat([chosen for chosen, _ in parts]))

    def joined(kind: str, name: str) -> Tensor:
        return torch.cat([getattr(made[kind], name)[:-1] for _, made in parts])[order]

    return {kind: Rotation(joined(kind, "cosine"), joined(kind, "sine")) for kind in parts[0][1]}


def scalings(config: PreTrainedConfig) -> dict[str, int]:
    """The types of rotary scaling that a model uses, each with its original context length (0: not given)."""
    return {
        str(one.get("rope_type", "default")): int(one.get("original_max_position_embeddings") or 0)
        for one in rotary_parameters(config)
    }


def rotary_parameters(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of a model's rotary positions: one set, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [one for one in parameters.values() if isinstance(one, Mapping)] or [parameters]
