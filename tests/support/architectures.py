"""A tiny configuration of every family but the two that the whole suite runs on, with each family's traps in reach.

Windows are shorter than the tests' prompts, head sizes are not the hidden size over the heads, and every multiplier
differs from 1, so that leaving one out is seen.
"""

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig

Make = Callable[[int], PreTrainedConfig]

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
WINDOW = 4
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def make(name: str, **different: Any) -> Make:
    """A configuration class, with what is given instead of the common values; None leaves a value out."""
    fields = {key: value for key, value in {**COMMON, **different}.items() if value is not ...}
    return lambda vocabulary: getattr(transformers, name)(vocab_size=vocabulary, **fields)


def _gemma3(vocabulary: int) -> PreTrainedConfig:
    text = {**COMMON, "vocab_size": vocabulary, **GEMMA3, "query_pre_attn_scalar": 24, "rope_parameters": ROPES}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 8, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=vocabulary - 1,
        boi_token_index=vocabulary - 2,
        eoi_token_index=vocabulary - 3,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )


GPT = {"intermediate_size": ..., "num_key_value_heads": ...}
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
GEMMA3 = {"head_dim": 12, "sliding_window": WINDOW, "layer_types": KINDS}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [3.0, 6.0],
    "original_max_position_embeddings": 8,
    "partial_rotary_factor": 0.5,
}
# Both lengths are turned by the short factors and differ in what cosines and sines are multiplied by.
LONG_MULTIPLIED = {
    **LONG,
    "short_factor": [1.0, 1.2, 1.4, 1.6],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "partial_rotary_factor": 1.0,
    "short_mscale": 1.2,
    "long_mscale": 0.7,
}
BIGCODE = {
    **GPT,
    "n_embd": 32,
    "n_inner": 40,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 96,
    "hidden_size": ...,
    "num_hidden_layers": ...,
    "num_attention_heads": ...,
    "max_position_embeddings": ...,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# Squares of larger neurons would make a stream in which rounding is all that is seen. A neuron is 0 where it is not
# positive; with heads of this size those that the tests change are positive.
SQUARED = {"initializer_range": 0.12, "head_dim": 16}

ARCHITECTURES: dict[str, Make] = {
    "apertus": make("ApertusConfig", head_dim=12, attention_bias=True),
    "arcee": make("ArceeConfig", **SQUARED, attention_bias=True, mlp_bias=True),
    "bloom": make("BloomConfig", **GPT, n_head=4, n_layer=3, num_attention_heads=..., num_hidden_layers=...),
    "bloom-six-heads": make(
        "BloomConfig", **GPT, hidden_size=36, n_head=6, n_layer=3, num_attention_heads=..., num_hidden_layers=...
    ),
    "cohere": make("CohereConfig", head_dim=12, use_qk_norm=False, logit_scale=0.7),
    "cohere-normed": make("CohereConfig", use_qk_norm=True, logit_scale=2.0),
    "cohere2": make("Cohere2Config", head_dim=12, sliding_window=WINDOW, layer_types=KINDS, logit_scale=0.7),
    "ernie4_5": make("Ernie4_5Config", head_dim=12, use_bias=True),
    "exaone4": make("Exaone4Config", head_dim=12, sliding_window=WINDOW, layer_types=KINDS),
    "exaone4-all": make("Exaone4Config", head_dim=12, sliding_window=None, layer_types=3 * ["full_attention"]),
    "falcon": make("FalconConfig", **GPT, multi_query=False, parallel_attn=False, bias=True),
    "falcon-alibi": make("FalconConfig", **GPT, multi_query=True, alibi=True, bias=True),
    "falcon-multi-query": make("FalconConfig", **GPT, multi_query=True, parallel_attn=True, bias=False),
    "falcon-new": make("FalconConfig", **GPT, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=40),
    "falcon-new-one-norm": make(
        "FalconConfig", **GPT, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "gemma": make("GemmaConfig", head_dim=12, hidden_activation="gelu_pytorch_tanh"),
    "gemma2": make(
        "Gemma2Config",
        **GEMMA3,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3_text": make(
        "Gemma3TextConfig", **GEMMA3, query_pre_attn_scalar=24, rope_parameters=ROPES, final_logit_softcapping=3.0
    ),
    "gemma3": _gemma3,
    "glm": make("GlmConfig", head_dim=12, attention_bias=True),
    "glm4": make("Glm4Config", head_dim=12, attention_bias=True),
    "gpt_bigcode": make("GPTBigCodeConfig", **BIGCODE, multi_query=True),
    "gpt_bigcode-heads": make("GPTBigCodeConfig", **BIGCODE, multi_query=False, scale_attn_weights=False),
    "gpt_neo": make(
        "GPTNeoConfig",
        **GPT,
        num_layers=3,
        num_heads=4,
        window_size=WINDOW,
        attention_types=[[["global", "local", "local"], 1]],
        num_hidden_layers=...,
        num_attention_heads=...,
    ),
    "gpt_neox": make("GPTNeoXConfig", num_key_value_heads=..., use_parallel_residual=True, rotary_pct=0.5),
    "gpt_neox-sequential": make("GPTNeoXConfig", num_key_value_heads=..., use_parallel_residual=False, rotary_pct=0.5),
    "gpt_oss": make(
        "GptOssConfig",
        head_dim=12,
        sliding_window=WINDOW,
        layer_types=KINDS,
        num_local_experts=5,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    ),
    "gptj": make(
        "GPTJConfig",
        **GPT,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=96,
        rotary_dim=4,
        hidden_size=...,
        num_hidden_layers=...,
        num_attention_heads=...,
        max_position_embeddings=...,
    ),
    "granite": make(
        "GraniteConfig",
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        attention_multiplier=0.2,
        logits_scaling=2.5,
    ),
    "granitemoe": make(
        "GraniteMoeConfig",
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        attention_multiplier=0.2,
        logits_scaling=2.5,
        num_local_experts=5,
        num_experts_per_tok=2,
    ),
    "helium": make("HeliumConfig", head_dim=8, attention_bias=True, mlp_bias=True),
    "hunyuan_v1_dense": make("HunYuanDenseV1Config", head_dim=12, attention_bias=True),
    "hunyuan_v1_dense-stretched": make(
        "HunYuanDenseV1Config",
        head_dim=12,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": 50.0},
    ),
    "ministral": make("MinistralConfig", head_dim=12, sliding_window=WINDOW, layer_types=KINDS),
    "mistral": make("MistralConfig", head_dim=12, sliding_window=WINDOW),
    "mixtral": make("MixtralConfig", sliding_window=WINDOW, num_local_experts=5, num_experts_per_tok=2),
    "nemotron": make("NemotronConfig", **SQUARED, attention_bias=True, mlp_bias=True),
    "olmo": make("OlmoConfig", attention_bias=True),
    "olmo-clamped": make("OlmoConfig", clip_qkv=0.4),
    "olmo2": make("Olmo2Config"),
    "olmo3": make("Olmo3Config", sliding_window=WINDOW, layer_types=KINDS, rope_parameters=ROPES),
    "olmoe": make("OlmoeConfig", num_experts=5, num_experts_per_tok=2, clip_qkv=0.8, norm_topk_prob=True),
    "opt": make(
        "OPTConfig",
        intermediate_size=...,
        num_key_value_heads=...,
        ffn_dim=40,
        word_embed_proj_dim=32,
        init_std=0.2,
        initializer_range=...,
    ),
    "phi": make("PhiConfig", partial_rotary_factor=0.5),
    "phi-normed": make("PhiConfig", partial_rotary_factor=0.5, qk_layernorm=True),
    "phi3": make("Phi3Config", sliding_window=WINDOW, original_max_position_embeddings=96),
    "phi3-longrope": make("Phi3Config", rope_parameters=LONG, original_max_position_embeddings=8),
    "phimoe": make(
        "PhimoeConfig",
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        attention_bias=True,
        lm_head_bias=True,
    ),
    "phimoe-longrope": make(
        "PhimoeConfig", num_local_experts=5, num_experts_per_tok=2, rope_parameters=LONG_MULTIPLIED
    ),
    "qwen2": make("Qwen2Config", use_sliding_window=True, sliding_window=WINDOW, layer_types=KINDS),
    "qwen2_moe": make(
        "Qwen2MoeConfig", **EXPERTS, shared_expert_intermediate_size=24, mlp_only_layers=[1], norm_topk_prob=False
    ),
    "qwen3": make("Qwen3Config", head_dim=12),
    "qwen3_moe": make("Qwen3MoeConfig", **EXPERTS, head_dim=12, norm_topk_prob=True),
    "seed_oss": make("SeedOssConfig", head_dim=12, attention_bias=True, attention_out_bias=True, mlp_bias=True),
    "smollm3": make("SmolLM3Config", no_rope_layers=[1, 0, 1], attention_bias=True, mlp_bias=True),
    "smollm3-windows": make(
        "SmolLM3Config", use_sliding_window=False, sliding_window=WINDOW, no_rope_layers=[0, 1, 0], layer_types=KINDS
    ),
    "stablelm": make("StableLmConfig", partial_rotary_factor=0.5, use_qkv_bias=True),
    "starcoder2": make("Starcoder2Config", sliding_window=WINDOW, use_bias=True),
    "stablelm-parallel": make(
        "StableLmConfig", partial_rotary_factor=0.5, use_parallel_residual=True, qk_layernorm=True
    ),
}
