"""Rotary positions: how cosines and sines are made, and how queries and keys are turned by them.

Su et al. 2021, arXiv 2104.09864. Families differ in which dimensions are paired, in how many are turned, and in
whether layers of one kind turn otherwise than those of another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of the tokens' positions, [N, r]; r may be less than a head's size."""

    cosine: Tensor
    sine: Tensor

    def to(self, device: torch.device) -> "Rotation":
        """The same on the device of a block."""
        return Rotation(self.cosine.to(device), self.sine.to(device))


# By kind of layer; a family that knows no kinds has the one "".
Rotations = Mapping[str, Rotation]
# From the model, a tensor of the type and device wanted, and positions [N].
Rotary = Callable[[nn.Module, Tensor, Tensor], Rotations]
Rotate = Callable[[Tensor, Rotation], Tensor]


def rotary_module(path: str, kinds: Sequence[str] = ()) -> Rotary:
    """A module that gives cosines and sines by position, and by kind of layer where there are kinds."""

    def rotary(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
        module, where = model.get_submodule(path), positions.unsqueeze(0)
        if not kinds:
            return {"": _first(module(like.unsqueeze(0), where))}
        return {kind: _first(module(like.unsqueeze(0), where, kind)) for kind in kinds}

    return rotary


def _first(both: tuple[Tensor, Tensor]) -> Rotation:
    cosine, sine = both
    return Rotation(cosine[0], sine[0])


def changed(rotary: Rotary, change: Callable[[Tensor], Tensor]) -> Rotary:
    """Cosines and sines that lie otherwise in the module's output than they are used."""

    def changing(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
        made = rotary(model, like, positions)
        return {kind: Rotation(change(one.cosine), change(one.sine)) for kind, one in made.items()}

    return changing


def for_both_halves(angles: Tensor) -> Tensor:
    """[N, r / 2] to [N, r], for `rotate_halves`."""
    return torch.cat((angles, angles), dim=-1)


def first_half_for_pairs(angles: Tensor) -> Tensor:
    """[N, r] that is made for halves to [N, r], for `rotate_pairs`."""
    return angles[..., : angles.shape[-1] // 2].repeat_interleave(2, dim=-1)


def rotate_halves(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotates [N, heads, d] by the tokens' angles; of the turned dimensions, the first half goes with the second."""
    turned, rest = _cut(heads, rotation)
    half = turned.shape[-1] // 2
    other = torch.cat((-turned[..., half:], turned[..., :half]), dim=-1)
    return _turn(turned, other, rest, rotation)


def rotate_pairs(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotates [N, heads, d] by the tokens' angles; each even dimension goes with the odd one after it."""
    turned, rest = _cut(heads, rotation)
    other = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    return _turn(turned, other, rest, rotation)


def rotate_pairs_in_float32(heads: Tensor, rotation: Rotation) -> Tensor:
    """The same, rounded at the end only."""
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
    """Rotations where prompts of more than `threshold` tokens are turned by other angles than shorter ones (LongRoPE).

    The module decides by the last position that it is given, so each token goes in beside its prompt's last.
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
    """The kinds of rotary scaling that a model uses, each with the length it was trained at first (0: not said)."""
    return {
        str(one.get("rope_type", "default")): int(one.get("original_max_position_embeddings") or 0)
        for one in rotary_parameters(config)
    }


def rotary_parameters(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """The parameters of a model's rotary positions: one set, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [one for one in parameters.values() if isinstance(one, Mapping)] or [parameters]
