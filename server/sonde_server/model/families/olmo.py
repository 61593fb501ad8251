"""OLMo: the first generation has norms without weights before each part, later ones norms after each part."""

from dataclasses import replace

from transformers import PreTrainedConfig

from ..projections import clamped, normed_whole, separate
from ..rotary import rotary_module
from .family import Family, windows_by_kind
from .llama import llama


def olmo(config: PreTrainedConfig) -> Family:
    """OLMo: arXiv 2402.00838. Queries, keys and values are clamped."""
    return llama(config, project=clamped(separate(), config.clip_qkv))


def olmo2(config: PreTrainedConfig) -> Family:
    """OLMo 2: arXiv 2501.00656. Norms only after each part; queries and keys are normed over all heads."""
    return llama(
        config,
        project=normed_whole(separate(), "q_norm", "k_norm"),
        attention_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_post_norm="post_feedforward_layernorm",
    )


def olmo3(config: PreTrainedConfig) -> Family:
    """OLMo 3: Ai2 2025. Layers with a sliding window have their own rotary angles."""
    kinds = [str(kind) for kind in config.layer_types]
    return replace(
        olmo2(config),
        rotary=rotary_module("model.rotary_emb", sorted(set(kinds))),
        kinds=kinds,
        windows=windows_by_kind(config),
    )
