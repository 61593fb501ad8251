"""Gemma: a scaled embedding and norms with an added 1; from the second generation, norms after each part too."""

from transformers import PreTrainedConfig

from ..projections import normed_heads, separate
from ..rotary import rotary_module
from .family import Family, capped, refuse, windows_by_kind
from .llama import llama


def _refuse_bidirectional(config: PreTrainedConfig) -> None:
    if getattr(config, "use_bidirectional_attention", None):
        refuse(
            config, "its attention is bidirectional (use_bidirectional_attention), so it does not predict next tokens"
        )


def gemma(config: PreTrainedConfig) -> Family:
    """Gemma 1: arXiv 2403.08295. The embedding module scales its output."""
    _refuse_bidirectional(config)
    return llama(config)


def gemma2(config: PreTrainedConfig) -> Family:
    """Gemma 2: arXiv 2408.00118. Scores and logits are capped; every other layer has a sliding window."""
    _refuse_bidirectional(config)
    return llama(
        config,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        windows=windows_by_kind(config),
        softcap=config.attn_logit_softcapping,
        logits=capped(config.final_logit_softcapping),
    )


def gemma3_text(config: PreTrainedConfig, prefix: str = "model") -> Family:
    """Gemma 3: arXiv 2503.19786. Layers with a sliding window have their own rotary angles."""
    _refuse_bidirectional(config)
    kinds = [str(kind) for kind in config.layer_types]
    return llama(
        config,
        embedding=f"{prefix}.embed_tokens",
        blocks=f"{prefix}.layers",
        final_norm=f"{prefix}.norm",
        project=normed_heads(separate(), "q_norm", "k_norm"),
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        rotary=rotary_module(f"{prefix}.rotary_emb", sorted(set(kinds))),
        kinds=kinds,
        windows=windows_by_kind(config),
        # The configuration may name a cap on the scores, but the model does not use it.
        logits=capped(config.final_logit_softcapping),
    )
