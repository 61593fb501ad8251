"""The one place through which every attention of the model passes.

transformers lets a model name its attention function. Ours hands queries, keys and values to whatever the
engine has put in charge for the present batch, and otherwise to SDPA, so that the model called as a whole
behaves as it was loaded. The mask function is registered beside it: without one of the same name a model
would silently lose its causal mask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sonde"


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """What a family adds to plain attention: the scale, a window of keys, a cap on the scores."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None


# (layer, query [N, H, d], key [N, K, d], value [N, K, d], settings) -> each head's mix of values [N, H, d]
Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionSettings], Tensor]

_in_charge: ContextVar[Attend | None] = ContextVar("sonde_attention", default=None)


@contextmanager
def attention_by(attend: Attend) -> Iterator[None]:
    """Puts `attend` in charge of every attention that this thread runs, until the block ends."""
    token = _in_charge.set(attend)
    try:
        yield
    finally:
        _in_charge.reset(token)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    attend = _in_charge.get()
    if attend is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    settings = AttentionSettings(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=window if isinstance(window, int) else None,
        softcap=softcap if isinstance(softcap, float) else None,
    )
    # A batch is one packed row: [1, H, N, d] -> [N, H, d].
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    mixed = attend(int(module.layer_idx), query, key, value, settings)  # type: ignore[arg-type]
    return mixed.unsqueeze(0), None


def register() -> None:
    """Makes `ATTENTION` a name that transformers models can be loaded with."""
    AttentionInterface.register(ATTENTION, _forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings) -> Tensor:
    """Causal SDPA over [B, H, n, d] and [B, K, n, d]."""
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=query.shape[2] > 1,
        scale=settings.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
