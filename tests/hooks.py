"""Where each component lives in the plain modules of transformers, written by hand, family by family.

`attach(model, visit)` puts hooks on an unchanged Hugging Face model, so that `visit(component, layer, tensor)` is
called with every component's value, batch first, and what it returns takes that value's place. A component without
layers comes with layer 0. Nothing here is clever or fast: it is what the server is compared with.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Visit = Callable[[str, int, Tensor], Tensor]

ATTENTION = "sonde_oracle"


@dataclass(frozen=True)
class Modules:
    """The modules of a decoder whose parts are where Llama or GPT-2 has them."""

    embedding: nn.Embedding
    blocks: list[nn.Module]
    attention: list[nn.Module]
    attention_projection: list[Any]
    mlp_norm: list[nn.Module]
    mlp: list[nn.Module]
    mlp_projection: list[nn.Module]
    final_norm: Any
    unembedding: nn.Linear


def gpt2_modules(model: Any) -> Modules:
    """GPT-2: transformer.h[i].{attn, ln_2, mlp}."""
    blocks = list(model.transformer.h)
    return Modules(
        embedding=model.transformer.wte,
        blocks=blocks,
        attention=[block.attn for block in blocks],
        attention_projection=[block.attn.c_proj for block in blocks],
        mlp_norm=[block.ln_2 for block in blocks],
        mlp=[block.mlp for block in blocks],
        mlp_projection=[block.mlp.c_proj for block in blocks],
        final_norm=model.transformer.ln_f,
        unembedding=model.lm_head,
    )


def llama_modules(model: Any) -> Modules:
    """Llama: model.layers[i].{self_attn, post_attention_layernorm, mlp}."""
    blocks = list(model.model.layers)
    return Modules(
        embedding=model.model.embed_tokens,
        blocks=blocks,
        attention=[block.self_attn for block in blocks],
        attention_projection=[block.self_attn.o_proj for block in blocks],
        mlp_norm=[block.post_attention_layernorm for block in blocks],
        mlp=[block.mlp for block in blocks],
        mlp_projection=[block.mlp.down_proj for block in blocks],
        final_norm=model.model.norm,
        unembedding=model.lm_head,
    )


MODULES: dict[str, Callable[[Any], Modules]] = {"gpt2": gpt2_modules, "llama": llama_modules}


def modules_of(model: Any) -> Modules:
    """The parts of a loaded model."""
    return MODULES[model.config.model_type](model)


_visitors: list[Visit] = []


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: object
) -> tuple[Tensor, Tensor]:
    """Softmax attention with every intermediate value shown to the visitor; masked scores are -infinity."""
    visit, layer = _visitors[-1], module.layer_idx
    query = visit("QUERY", layer, query.transpose(1, 2)).transpose(1, 2)
    key = visit("KEY", layer, key.transpose(1, 2)).transpose(1, 2)
    value = visit("VALUE", layer, value.transpose(1, 2)).transpose(1, 2)
    group = query.shape[1] // key.shape[1]
    scores = scaling * torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(group, dim=1))
    scores = visit("ATTENTION_SCORES", layer, scores.masked_fill(attention_mask < 0, -torch.inf))
    # A query that is left with no key attends to nothing, where softmax would give NaN.
    pattern = torch.nan_to_num(scores.softmax(-1), nan=0.0)
    pattern = visit("ATTENTION_PATTERN", layer, pattern)
    mixed = torch.einsum("bhqk,bhkd->bqhd", pattern, value.repeat_interleave(group, dim=1))
    return mixed, pattern


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _on_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Changes what a module gives; returns how to take the hook away."""

    def hook(_: nn.Module, __: Any, result: Any) -> Any:
        return _with_first(result, change(_first(result)))

    return module.register_forward_hook(hook).remove


def _on_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Changes the hidden states that a module takes; returns how to take the hook away."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


@contextmanager
def attach(model: Any, visit: Visit) -> Iterator[None]:
    """Shows every component's value to `visit` until the block is left."""
    parts = modules_of(model)
    before = model.config._attn_implementation
    heads = model.config.num_attention_heads

    def middle(value: Tensor, layer: int) -> Tensor:
        # In place: the block holds the same tensor as the residual stream that the MLP is added to.
        return value if value.requires_grad else value.copy_(visit("RESIDUAL_MID", layer, value))

    def by_head(value: Tensor, layer: int) -> Tensor:
        return visit("HEAD_OUT", layer, value.view(*value.shape[:-1], heads, -1)).flatten(-2)

    with ExitStack() as stack:
        stack.callback(_on_output(parts.embedding, partial(visit, "TOKEN_EMBEDDING", 0)))
        for layer, block in enumerate(parts.blocks):
            stack.callback(_on_input(block, partial(visit, "RESIDUAL_PRE", layer)))
            stack.callback(_on_input(parts.attention_projection[layer], partial(by_head, layer=layer)))
            stack.callback(_on_output(parts.attention[layer], partial(visit, "ATTENTION_OUT", layer)))
            stack.callback(_on_input(parts.mlp_norm[layer], partial(middle, layer=layer)))
            stack.callback(_on_input(parts.mlp_projection[layer], partial(visit, "NEURON", layer)))
            stack.callback(_on_output(parts.mlp[layer], partial(visit, "MLP_OUT", layer)))
            stack.callback(_on_output(block, partial(visit, "RESIDUAL_POST", layer)))
        stack.callback(_on_output(parts.final_norm, partial(visit, "FINAL_NORM", 0)))
        stack.callback(_on_output(parts.unembedding, partial(visit, "LOGITS", 0)))
        _visitors.append(visit)
        stack.callback(_visitors.pop)
        model.set_attn_implementation(ATTENTION)
        stack.callback(model.set_attn_implementation, before)
        yield
