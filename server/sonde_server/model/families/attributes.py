"""The attributes of configurations that families account for.

A later version of transformers may add an attribute that changes what a model computes. Until that attribute is listed
here, a checkpoint that sets it to another value than its default is refused, because its family would ignore it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from transformers import PreTrainedConfig

# Attributes that change no number of a prediction: names, token ids, training, caches, other heads than the language
# model's, and the parts of a model that are not hosted.
_WITHOUT_EFFECT = """
    architectures boi_token_index bos_token_id chunk_size_feed_forward dtype eod_token_id eoi_token_index eos_token_id
    id2label image_token_index initializer_range init_std is_decoder is_encoder_decoder label2id mm_tokens_per_image
    output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type return_dict router_aux_loss_coef
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj text_config
    transformers_version use_cache vision_config
    attention_dropout attn_pdrop classifier_dropout dropout embd_pdrop embed_dropout embedding_dropout hidden_dropout
    input_jitter_noise layerdrop resid_dropout resid_pdrop residual_dropout router_jitter_noise
"""
# Sizes, which are read for every family, and attributes of modules, which the families call as they are.
_IN_MODULES = """
    activation activation_function attention_bias attention_out_bias bias enable_bias ffn_dim ffn_hidden_size head_dim
    hidden_act hidden_activation hidden_size intermediate_size layer_norm_elementwise_affine layer_norm_eps
    layer_norm_epsilon lm_head_bias max_position_embeddings mlp_bias n_embd n_head n_inner n_layer n_positions norm_eps
    norm_epsilon num_attention_heads num_heads num_hidden_layers num_key_value_heads num_layers
    original_max_position_embeddings qkv_bias query_pre_attn_scalar rms_norm_eps rope_parameters tie_word_embeddings
    use_bias use_qkv_bias vocab_size
    decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok
    num_local_experts shared_expert_intermediate_size swiglu_alpha swiglu_limit
"""
_EVERYWHERE = frozenset(f"{_WITHOUT_EFFECT} {_IN_MODULES}".split())

_SAME_WINDOW = "sliding_window"
_WINDOWS_BY_KIND = "layer_types sliding_window"
_QWEN = f"{_WINDOWS_BY_KIND} max_window_layers use_sliding_window"
_GPT2 = "add_cross_attention scale_attn_weights"
_GRANITE = "attention_multiplier embedding_multiplier logits_scaling residual_multiplier"
_LLAVA = (
    "image_seq_length multimodal_projector_bias projector_hidden_act vision_feature_layer "
    "vision_feature_select_strategy"
)
_QWEN_VL = "image_token_id video_token_id vision_end_token_id vision_start_token_id"
_GEMMA = "use_bidirectional_attention"
_GEMMA2 = f"{_GEMMA} {_WINDOWS_BY_KIND} attn_logit_softcapping final_logit_softcapping"
# Attributes that a family reads, or that its model does not use.
_IN_FAMILY: Mapping[str, str] = {
    "bloom": "apply_residual_connection_post_layernorm slow_but_exact",
    "cohere": "logit_scale use_qk_norm",
    "cohere2": f"{_WINDOWS_BY_KIND} logit_scale",
    "exaone4": f"{_WINDOWS_BY_KIND} sliding_window_pattern",
    "falcon": "alibi multi_query new_decoder_architecture num_kv_heads num_ln_in_parallel_attn parallel_attn",
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": f"{_GPT2} reorder_and_upcast_attn scale_attn_by_inverse_layer_idx",
    "gpt_bigcode": f"{_GPT2} attention_softmax_in_fp32 multi_query scale_attention_softmax_in_fp32",
    "gpt_neo": "attention_types window_size",
    "gpt_neox": "use_parallel_residual",
    "gpt_oss": _WINDOWS_BY_KIND,
    "gptj": "rotary_dim",
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "idefics3": "image_token_id scale_factor",
    "smolvlm": "image_token_id scale_factor",
    "internvl": (
        "downsample_ratio image_seq_length image_token_id projector_hidden_act vision_feature_layer "
        "vision_feature_select_strategy"
    ),
    "llava": _LLAVA,
    "llava_next": f"{_LLAVA} image_grid_pinpoints",
    "ministral": _WINDOWS_BY_KIND,
    "mistral": _SAME_WINDOW,
    "mixtral": _SAME_WINDOW,
    "olmo": "clip_qkv",
    "olmo3": _WINDOWS_BY_KIND,
    "olmoe": "clip_qkv",
    "opt": "_remove_final_layer_norm do_layer_norm_before word_embed_proj_dim",
    "phi": "qk_layernorm",
    "phi3": _SAME_WINDOW,
    "phimoe": _SAME_WINDOW,
    "qwen2": _QWEN,
    "qwen2_5_vl": _QWEN_VL,
    "qwen2_5_vl_text": _QWEN,
    "qwen2_moe": _QWEN,
    "qwen2_vl": _QWEN_VL,
    "qwen2_vl_text": _QWEN,
    "qwen3": _QWEN,
    "qwen3_moe": f"{_SAME_WINDOW} use_sliding_window",
    "smollm3": f"{_WINDOWS_BY_KIND} no_rope_layer_interval no_rope_layers use_sliding_window",
    "stablelm": "qk_layernorm use_parallel_residual",
    "starcoder2": _SAME_WINDOW,
}


def unaccounted(config: PreTrainedConfig, written: Mapping[str, Any]) -> Iterator[str]:
    """The names of attributes that a checkpoint sets to another value than the default, and that its family ignores.

    `written`: the attributes in the checkpoint's config.json. Attributes that the class of its configuration does not
    have are not counted, since transformers ignores them too.
    """
    kind = type(config)
    if not is_dataclass(kind):
        return
    known = _EVERYWHERE | frozenset(_IN_FAMILY.get(config.model_type, "").split())
    for field in fields(kind):
        if field.name in known or field.name not in written:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if written[field.name] != default:
            yield field.name
