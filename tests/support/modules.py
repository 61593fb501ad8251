"""Where each component lies in the plain modules of transformers, family by family, read off their code by hand."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Modules:
    """The modules of a decoder. A list has one entry a block; an empty one says that there is no such place."""

    embedding: Any
    blocks: list[nn.Module]
    attention: list[Any]
    """The modules that attend."""
    attention_projection: list[Any]
    """What takes the heads' mixes of values."""
    attention_out: list[nn.Module]
    """What gives attention's contribution."""
    mlp_norm: list[nn.Module]
    """What takes the stream between attention and the MLP."""
    mlp_out: list[nn.Module]
    """What gives the MLP's contribution."""
    mlp_projection: list[nn.Module]
    """What takes the neurons."""
    final_norm: Any
    unembedding: nn.Linear
    key_value_heads: int | None = None
    entered: Any = None
    """What takes token embeddings with an image among them."""
    factor: float = 1.0
    """A contribution is the module's output times this."""
    finish: Callable[[Tensor], Tensor] = lambda logits: logits
    """From the unembedding's output to the logits."""


def _each(blocks: Iterable[nn.Module], path: str | None) -> list[Any]:
    return [] if path is None else [block.get_submodule(path) for block in blocks]


def _read(
    model: Any,
    embedding: str,
    blocks: str,
    final_norm: str,
    *,
    attention: str = "self_attn",
    projection: str = "self_attn.o_proj",
    attention_out: str | None = None,
    middle: str | None = "post_attention_layernorm",
    mlp_out: str = "mlp",
    neurons: str | None = "mlp.down_proj",
    **rest: Any,
) -> Modules:
    found = list(model.get_submodule(blocks))
    return Modules(
        embedding=model.get_submodule(embedding),
        blocks=found,
        attention=_each(found, attention),
        attention_projection=_each(found, projection),
        attention_out=_each(found, attention_out or attention),
        mlp_norm=_each(found, middle),
        mlp_out=_each(found, mlp_out),
        mlp_projection=_each(found, neurons),
        final_norm=model.get_submodule(final_norm),
        unembedding=model.get_output_embeddings(),
        **rest,
    )


def _llama(model: Any, **different: Any) -> Modules:
    return _read(model, "model.embed_tokens", "model.layers", "model.norm", **different)


def _within(model: Any, inner: str = "model.language_model") -> Modules:
    entered = model.get_submodule(inner)
    return _read(model, f"{inner}.embed_tokens", f"{inner}.layers", f"{inner}.norm", entered=entered)


def _sandwiched(model: Any, prefix: str = "model", **different: Any) -> Modules:
    return _read(
        model,
        f"{prefix}.embed_tokens",
        f"{prefix}.layers",
        f"{prefix}.norm",
        attention_out="post_attention_layernorm",
        middle="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
        **different,
    )


def _cap(model: Any) -> Callable[[Tensor], Tensor]:
    cap = model.config.final_logit_softcapping
    return lambda logits: cap * (logits / cap).tanh()


def _gpt(model: Any, **different: Any) -> Modules:
    return _read(model, "transformer.wte", "transformer.h", "transformer.ln_f", attention="attn", **different)


def _gpt_neox(model: Any) -> Modules:
    return _read(
        model,
        "gpt_neox.embed_in",
        "gpt_neox.layers",
        "gpt_neox.final_layer_norm",
        attention="attention",
        projection="attention.dense",
        middle=None if model.config.use_parallel_residual else "post_attention_layernorm",
        neurons="mlp.dense_4h_to_h",
    )


def _opt(model: Any) -> Modules:
    return _read(
        model,
        "model.decoder.embed_tokens",
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        projection="self_attn.out_proj",
        middle="final_layer_norm",
        mlp_out="fc2",
        neurons="fc2",
    )


def _bloom(model: Any) -> Modules:
    return _read(
        model,
        "transformer.word_embeddings",
        "transformer.h",
        "transformer.ln_f",
        attention="self_attention",
        projection="self_attention.dense",
        attention_out="self_attention.dense",  # the module around it adds the residual stream
        mlp_out="mlp.dense_4h_to_h",  # likewise
        neurons="mlp.dense_4h_to_h",
    )


def _falcon(model: Any) -> Modules:
    config = model.config
    if config.new_decoder_architecture:
        heads = config.num_kv_heads
    else:
        heads = 1 if config.multi_query else config.num_attention_heads
    parallel = config.new_decoder_architecture or config.parallel_attn
    return _read(
        model,
        "transformer.word_embeddings",
        "transformer.h",
        "transformer.ln_f",
        attention="self_attention",
        projection="self_attention.dense",
        middle=None if parallel else "post_attention_layernorm",
        neurons="mlp.dense_4h_to_h",
        key_value_heads=heads,
    )


def _stablelm(model: Any) -> Modules:
    return _llama(model, middle=None if model.config.use_parallel_residual else "post_attention_layernorm")


def _granite(model: Any) -> Modules:
    config = model.config
    return _llama(model, factor=config.residual_multiplier, finish=lambda logits: logits / config.logits_scaling)


def _phi(model: Any) -> Modules:
    norm = "model.final_layernorm"
    different = {"projection": "self_attn.dense", "middle": None, "neurons": "mlp.fc2"}
    return _read(model, "model.embed_tokens", "model.layers", norm, **different)


def _cohere(model: Any) -> Modules:
    scale = model.config.logit_scale
    return _llama(model, middle=None, finish=lambda logits: logits * scale)


def _granitemoe(model: Any) -> Modules:
    config = model.config
    return _llama(
        model,
        mlp_out="block_sparse_moe",
        neurons=None,
        factor=config.residual_multiplier,
        finish=lambda logits: logits / config.logits_scaling,
    )


def _normed_behind(model: Any) -> Modules:
    # Without a norm before the MLP, the MLP itself takes the stream.
    return _llama(model, attention_out="post_attention_layernorm", middle="mlp", mlp_out="post_feedforward_layernorm")


MODULES: dict[str, Callable[[Any], Modules]] = {
    "apertus": lambda model: _llama(model, middle="feedforward_layernorm"),
    "arcee": _llama,
    "bloom": _bloom,
    "cohere": _cohere,
    "cohere2": _cohere,
    "ernie4_5": _llama,
    "exaone4": _normed_behind,
    "falcon": _falcon,
    "gemma": _llama,
    "gemma2": lambda model: _sandwiched(model, finish=_cap(model)),
    "gemma3": lambda model: _sandwiched(model, "model.language_model", entered=model.model.language_model),
    "gemma3_text": lambda model: _sandwiched(model, finish=_cap(model)),
    "glm": _llama,
    "glm4": lambda model: _llama(model, attention_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm"),
    "gpt2": lambda model: _gpt(model, projection="attn.c_proj", middle="ln_2", neurons="mlp.c_proj"),
    "gpt_bigcode": lambda model: _gpt(model, projection="attn.c_proj", middle="ln_2", neurons="mlp.c_proj"),
    "gpt_neo": lambda model: _gpt(model, projection="attn.attention.out_proj", middle="ln_2", neurons="mlp.c_proj"),
    "gpt_neox": _gpt_neox,
    "gpt_oss": lambda model: _llama(model, neurons=None),
    "gptj": lambda model: _gpt(model, projection="attn.out_proj", middle=None, neurons="mlp.fc_out"),
    "granite": _granite,
    "granitemoe": _granitemoe,
    "helium": _llama,
    "hunyuan_v1_dense": _llama,
    "idefics3": lambda model: _within(model, "model.text_model"),
    "internvl": _within,
    "llama": _llama,
    "llava": _within,
    "llava_next": _within,
    "ministral": _llama,
    "mistral": _llama,
    "mixtral": lambda model: _llama(model, neurons=None),
    "nemotron": _llama,
    "olmo": _llama,
    "olmo2": _normed_behind,
    "olmo3": _normed_behind,
    "olmoe": lambda model: _llama(model, neurons=None),
    "opt": _opt,
    "phi": _phi,
    "phi3": _llama,
    "phimoe": lambda model: _llama(model, neurons=None),
    "qwen2": _llama,
    "qwen2_5_vl": _within,
    "qwen2_vl": _within,
    "qwen2_moe": lambda model: _llama(model, neurons=None),
    "qwen3": _llama,
    "qwen3_moe": lambda model: _llama(model, neurons=None),
    "seed_oss": _llama,
    "smollm3": _llama,
    "smolvlm": lambda model: _within(model, "model.text_model"),
    "stablelm": _stablelm,
    "starcoder2": lambda model: _llama(model, neurons="mlp.c_proj"),
}


def modules_of(model: Any) -> Modules:
    """The parts of a loaded model."""
    return MODULES[model.config.model_type](model)
