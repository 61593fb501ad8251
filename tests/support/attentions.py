"""Attention written out, every intermediate value shown, in place of what transformers computes.

Most families let their attention be replaced by name. Four do not, or did not always: their modules are given another
method, which follows that family's code step by step and differs in nothing but that it shows its values.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Visit = Callable[[str, int, Tensor], Tensor]

ATTENTION = "sonde_oracle"
_visitors: list[Visit] = []


def attended(
    visit: Visit,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    hidden: Tensor,
    scaling: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """[B, T, H, d] and [B, T, K, d] to mixes of values [B, T, H, d] and patterns; what is `hidden` scores -infinity."""
    query, key, value = visit("QUERY", layer, query), visit("KEY", layer, key), visit("VALUE", layer, value)
    group = query.shape[2] // key.shape[2]
    scores = scaling * torch.einsum("bqhd,bkhd->bhqk", query, key.repeat_interleave(group, dim=2))
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + bias
    scores = visit("ATTENTION_SCORES", layer, scores.masked_fill(hidden, -torch.inf))
    if sinks is None:
        # A query that is left with no key attends to nothing, where softmax would give NaN.
        pattern = torch.nan_to_num(scores.softmax(-1), nan=0.0)
    else:
        column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        pattern = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    pattern = visit("ATTENTION_PATTERN", layer, pattern)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, value.repeat_interleave(group, dim=2)), pattern


def _named(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    settings: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "sinks": s_aux}
    return attended(_visitors[-1], module.layer_idx, q, k, v, hidden=attention_mask < 0, **settings)


AttentionInterface.register(ATTENTION, _named)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def _plain(
    visit: Visit,
    layer: int,
    scaling: float,
    local: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """GPT-J's and GPT-Neo's `_attn`; `local` [T, T] is what a layer with a window sees."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    length = q.shape[1]
    hidden = attention_mask < 0
    if local is not None:
        hidden = hidden | ~local[..., :length, :length]
    mixed, pattern = attended(visit, layer, q, k, v, hidden=hidden, scaling=scaling)
    return mixed.transpose(1, 2), pattern


def _bloom(
    module: Any, visit: Visit, layer: int, states: Tensor, residual: Tensor, *, alibi: Tensor, **rest: Any
) -> tuple[Tensor, Tensor]:
    batch, length, _ = states.shape
    q, k, v = module.query_key_value(states).view(batch, length, module.num_heads, 3, module.head_dim).unbind(3)
    bias = alibi.view(batch, module.num_heads, 1, length)
    hidden = rest["attention_mask"] < 0
    scaling = 1 / math.sqrt(module.head_dim)
    mixed, pattern = attended(visit, layer, q, k, v, hidden=hidden, scaling=scaling, bias=bias)
    return module.dense(mixed.flatten(2)) + residual, pattern


def _falcon(
    module: Any,
    visit: Visit,
    layer: int,
    states: Tensor,
    *,
    alibi: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    batch, length, _ = states.shape
    every, size, heads = module.query_key_value(states), module.head_dim, module.num_heads
    if module.new_decoder_architecture:
        every = every.view(batch, length, module.num_kv_heads, -1, size)
        q, k, v = every[:, :, :, :-2].flatten(2, 3), every[:, :, :, -2], every[:, :, :, -1]
    elif module.multi_query:
        every = every.view(batch, length, heads + 2, size)
        q, k, v = every[:, :, :-2], every[:, :, -2:-1], every[:, :, -1:]
    else:
        q, k, v = every.view(batch, length, heads, 3, size).unbind(3)
    scaling, bias = 1 / math.sqrt(size), None
    hidden = rest["attention_mask"] < 0
    if alibi is None:
        cosine, sine = (one.unsqueeze(2) for one in position_embeddings)
        q, k = (one * cosine + _turned(one) * sine for one in (q, k))
    else:
        bias = alibi.view(batch, heads, 1, length) * scaling
        # The model's own mask holds the biases as well.
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed, pattern = attended(visit, layer, q, k, v, hidden=hidden, scaling=scaling, bias=bias)
    return module.dense(mixed.flatten(2)), pattern


def _turned(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def show(model: Any, modules: list[Any], visit: Visit, stack: ExitStack) -> None:
    """Has every attention module show its values to `visit` until the stack is closed."""
    kind = model.config.model_type
    # Since transformers 5.24 GPT-J's is replaced by name like most.
    if kind not in ("bloom", "falcon", "gpt_neo") and not (kind == "gptj" and hasattr(modules[0], "_attn")):
        before = model.config._attn_implementation
        _visitors.append(visit)
        stack.callback(_visitors.pop)
        # A vision tower attends as it did.
        seeing = hasattr(model.config, "vision_config")
        model.set_attn_implementation({"text_config": ATTENTION} if seeing else ATTENTION)
        stack.callback(model.set_attn_implementation, before)
        return
    for layer, module in enumerate(modules):
        match kind:
            case "bloom":
                module.forward = partial(_bloom, module, visit, layer)
                stack.callback(delattr, module, "forward")
            case "falcon":
                module.forward = partial(_falcon, module, visit, layer)
                stack.callback(delattr, module, "forward")
            case "gptj":
                module._attn = partial(_plain, visit, layer, 1 / math.sqrt(module.head_dim), None)
                stack.callback(delattr, module, "_attn")
            case "gpt_neo":
                inner = module.attention
                inner._attn = partial(_plain, visit, layer, 1.0, inner.bias)
                stack.callback(delattr, inner, "_attn")
