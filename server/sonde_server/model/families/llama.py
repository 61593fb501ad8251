"""Llama and similar architectures: norms before both parts, rotary positions, a gated MLP."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..projections import fused, normed_heads, separate
from ..rotary import (
    changed,
    first_half_for_pairs,
    rotary_module,
    rotate_halves,
    rotate_pairs,
    rotate_pairs_in_float32,
)
from .family import Family, divided, multiplied, same_window, windows_by_kind


def llama(config: PreTrainedConfig, **different: Any) -> Family:
    """Llama: arXiv 2302.13971. `different`: the fields in which another family differs."""
    standard = Family(
        embedding="model.embed_tokens",
        blocks="model.layers",
        attention_norm="input_layernorm",
        attention="self_attn",
        project=separate(),
        output_projection="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        down_projection="mlp.down_proj",
        final_norm="model.norm",
        neurons=int(config.intermediate_size),
        rotary=rotary_module("model.rotary_emb"),
        rotate=rotate_halves,
    )
    return replace(standard, **different)


def mistral(config: PreTrainedConfig) -> Family:
    """Mistral: arXiv 2310.06825."""
    return llama(config, windows=same_window(config))


def qwen2(config: PreTrainedConfig) -> Family:
    """Qwen2: arXiv 2407.10671."""
    return llama(config, windows=windows_by_kind(config))


def qwen3(config: PreTrainedConfig) -> Family:
    """Qwen3: arXiv 2505.09388."""
    project = normed_heads(separate(), "q_norm", "k_norm")
    return llama(config, project=project, windows=windows_by_kind(config))


def ministral(config: PreTrainedConfig) -> Family:
    """Ministral 8B: a Mistral in which some layers have no sliding window."""
    return llama(config, windows=windows_by_kind(config))


def seed_oss(config: PreTrainedConfig) -> Family:
    """Seed-OSS: only the projections to queries, keys and values have biases."""
    return llama(config)


def arcee(config: PreTrainedConfig) -> Family:
    """AFM 4.5B: an MLP without a gate, with squared ReLU."""
    return llama(config)


def smollm3(config: PreTrainedConfig) -> Family:
    """SmolLM3: every fourth layer has no positions (Yang et al. 2025, arXiv 2501.18795)."""
    kinds = ["" if turned else None for turned in config.no_rope_layers]
    # transformers applies the sliding window to these layers even if use_sliding_window is false.
    return llama(config, kinds=kinds, windows=windows_by_kind(config))


def exaone4(config: PreTrainedConfig) -> Family:
    """EXAONE 4.0: arXiv 2507.11407. Norms only after each part; layers without a sliding window have no positions."""
    all_turned = config.sliding_window is None
    return llama(
        config,
        project=normed_heads(separate(), "q_norm", "k_norm"),
        attention_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_post_norm="post_feedforward_layernorm",
        kinds=["" if all_turned or kind == "sliding_attention" else None for kind in config.layer_types],
        windows=windows_by_kind(config),
    )


def hunyuan_v1_dense(config: PreTrainedConfig) -> Family:
    """Hunyuan dense: queries and keys are normed after the rotation."""
    # The type "dynamic" of its checkpoints stretches the base by a fixed alpha, the same for every length.
    fixed = bool((config.rope_parameters or {}).get("alpha"))
    return llama(config, turned_norms=("query_layernorm", "key_layernorm"), fixed_scaling=fixed)


def nemotron(config: PreTrainedConfig) -> Family:
    """Nemotron-4 and Minitron: arXiv 2402.16819. An MLP without a gate, with squared ReLU."""
    return llama(config)


def apertus(config: PreTrainedConfig) -> Family:
    """Apertus: arXiv 2509.14233. An MLP without a gate, and other names of the norms."""
    return llama(
        config,
        project=normed_heads(separate(), "q_norm", "k_norm"),
        attention_norm="attention_layernorm",
        mlp_norm="feedforward_layernorm",
    )


def starcoder2(config: PreTrainedConfig) -> Family:
    """StarCoder 2: arXiv 2402.19173. An MLP without a gate."""
    return llama(config, down_projection="mlp.c_proj", windows=same_window(config))


def phi3(config: PreTrainedConfig) -> Family:
    """Phi-3 and Phi-4: arXiv 2404.14219."""
    return llama(config, project=fused("qkv_proj"), windows=same_window(config))


def glm(config: PreTrainedConfig) -> Family:
    """GLM-4 of 2024: arXiv 2406.12793."""
    rotary = changed(rotary_module("model.rotary_emb"), first_half_for_pairs)
    return llama(config, rotary=rotary, rotate=rotate_pairs)


def glm4(config: PreTrainedConfig) -> Family:
    """GLM-4 of 2025: norms before and after each part."""
    return replace(glm(config), attention_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm")


def helium(config: PreTrainedConfig) -> Family:
    """Helium 1: Kyutai 2025."""
    return glm(config)


def ernie4_5(config: PreTrainedConfig) -> Family:
    """ERNIE 4.5, dense: Baidu 2025."""
    return replace(glm(config), rotate=rotate_pairs_in_float32)


def granite(config: PreTrainedConfig) -> Family:
    """Granite 3: multipliers of the embeddings, the scores, the outputs of both parts, and the logits."""
    factor = float(config.embedding_multiplier)

    def enter(_model: nn.Module, embeddings: Tensor, _positions: Tensor) -> Tensor:
        return embeddings * factor

    return llama(
        config,
        enter=enter,
        residual_multiplier=float(config.residual_multiplier),
        logits=divided(float(config.logits_scaling)),
    )


def cohere(config: PreTrainedConfig) -> Family:
    """Command R: attention and the MLP run in parallel and share one norm."""
    project = normed_heads(separate(), "q_norm", "k_norm") if config.use_qk_norm else separate()
    return _cohere(config, project=project)


def cohere2(config: PreTrainedConfig) -> Family:
    """Command R7B and Command A: arXiv 2504.00698. Layers without a sliding window have no positions."""
    kinds = ["" if kind == "sliding_attention" else None for kind in config.layer_types]
    return _cohere(config, kinds=kinds, windows=windows_by_kind(config))


def _cohere(config: PreTrainedConfig, **different: Any) -> Family:
    return llama(
        config,
        mlp_norm="input_layernorm",
        parallel=True,
        rotate=rotate_pairs_in_float32,
        logits=multiplied(float(config.logit_scale)),
        **different,
    )


def stablelm(config: PreTrainedConfig) -> Family:
    """StableLM 2: arXiv 2402.17834; also the parallel StableLM alpha and 12B."""
    project, parallel = separate(), bool(config.use_parallel_residual)
    return llama(
        config,
        project=normed_heads(project, "q_layernorm", "k_layernorm") if config.qk_layernorm else project,
        mlp_norm="input_layernorm" if parallel else "post_attention_layernorm",
        parallel=parallel,
    )


def phi(config: PreTrainedConfig) -> Family:
    """Phi-1 to Phi-2: arXiv 2309.05463. Attention and the MLP run in parallel and share one norm."""
    project = separate()
    return llama(
        config,
        project=normed_heads(project, "q_layernorm", "k_layernorm") if config.qk_layernorm else project,
        output_projection="self_attn.dense",
        mlp_norm="input_layernorm",
        down_projection="mlp.fc2",
        final_norm="model.final_layernorm",
        parallel=True,
    )
