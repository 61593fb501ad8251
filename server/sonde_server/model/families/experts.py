"""Mixtures of experts: the MLP routes each token to some of its experts, whose weights are fused in one module."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from ..feedforward import feed_forward
from ..projections import clamped, normed_heads, normed_whole, separate
from ..rotary import changed, for_both_halves, rotary_module, scalings
from .family import Family, refuse, same_window, windows_by_kind
from .llama import granite, llama


def _routed(config: PreTrainedConfig, **different: Any) -> Family:
    return llama(config, down_projection=None, **different)


def mixtral(config: PreTrainedConfig) -> Family:
    """Mixtral: arXiv 2401.04088."""
    return _routed(config, windows=same_window(config))


def qwen2_moe(config: PreTrainedConfig) -> Family:
    """Qwen1.5-MoE and Qwen2-MoE: arXiv 2407.10671."""
    return _routed(config, windows=windows_by_kind(config))


def qwen3_moe(config: PreTrainedConfig) -> Family:
    """Qwen3-MoE: arXiv 2505.09388."""
    return _routed(config, project=normed_heads(separate(), "q_norm", "k_norm"), windows=same_window(config))


def olmoe(config: PreTrainedConfig) -> Family:
    """OLMoE: arXiv 2409.02060. Queries and keys are normed over all heads; queries, keys and values are clamped."""
    return _routed(config, project=clamped(normed_whole(separate(), "q_norm", "k_norm"), config.clip_qkv))


def granitemoe(config: PreTrainedConfig) -> Family:
    """Granite 3 with experts, and the multipliers of Granite."""
    return replace(granite(config), feed_forward=feed_forward("block_sparse_moe"), down_projection=None)


def phimoe(config: PreTrainedConfig) -> Family:
    """Phi-3.5-MoE: arXiv 2404.14219. Two experts, each chosen and weighted independently (arXiv 2409.12136)."""
    if set(scalings(config)) - {"default", "longrope"}:
        refuse(config, "its rotary positions are scaled by another method than longrope")
    return _routed(config, windows=same_window(config))


def gpt_oss(config: PreTrainedConfig) -> Family:
    """gpt-oss: arXiv 2508.10925. Each head has a learned score without a value in its softmax."""
    return _routed(
        config,
        rotary=changed(rotary_module("model.rotary_emb"), for_both_halves),
        windows=windows_by_kind(config),
        sinks="sinks",
    )
