"""GPT-2 and its successors before Llama: learned, rotary or linear positions, and an MLP without a gate."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..attention import LinearBias
from ..feedforward import adding_feed_forward, in_a_row
from ..projections import Project, fused, grouped, scaled_queries, separate
from ..rotary import Rotation, Rotations, rotary_module, rotate_halves, rotate_pairs
from .family import Family, normed, refuse, with_positions


def gpt2(config: PreTrainedConfig) -> Family:
    """GPT-2: Radford et al. 2019."""
    if config.reorder_and_upcast_attn:
        refuse(config, "reorder_and_upcast_attn is set, which changes how attention is rounded")
    return _gpt2(config, fused("c_attn"))


def gpt_bigcode(config: PreTrainedConfig) -> Family:
    """SantaCoder and StarCoder: arXiv 2301.03988 and 2305.06161. Heads may share one key and value head."""
    if config.multi_query:
        return replace(_gpt2(config, fused("c_attn")), key_value_heads=1)
    return _gpt2(config, grouped("c_attn"))


def _gpt2(config: PreTrainedConfig, project: Project) -> Family:
    if config.add_cross_attention:
        refuse(config, "add_cross_attention is set; only decoders without an encoder are hosted")
    return Family(
        embedding="transformer.wte",
        enter=with_positions("transformer.wpe"),
        blocks="transformer.h",
        attention_norm="ln_1",
        attention="attn",
        project=project,
        output_projection="attn.c_proj",
        mlp_norm="ln_2",
        down_projection="mlp.c_proj",
        final_norm="transformer.ln_f",
        neurons=int(config.n_inner or 4 * config.hidden_size),
    )


def gpt_neo(config: PreTrainedConfig) -> Family:
    """GPT-Neo: Black et al. 2021. Scores are not scaled; every other layer has a sliding window."""
    window = int(config.window_size)
    return Family(
        embedding="transformer.wte",
        enter=with_positions("transformer.wpe"),
        blocks="transformer.h",
        attention_norm="ln_1",
        attention="attn.attention",
        project=separate(),
        output_projection="attn.attention.out_proj",
        mlp_norm="ln_2",
        down_projection="mlp.c_proj",
        final_norm="transformer.ln_f",
        neurons=int(config.intermediate_size or 4 * config.hidden_size),
        scaling=1.0,
        windows=[window if kind == "local" else None for kind in config.attention_layers],
    )


def _gptj_rotary(model: nn.Module, like: Tensor, positions: Tensor) -> Rotations:
    # The table is a buffer on the model's device. Before transformers 5.24, every attention module has one.
    transformer: Any = model.get_submodule("transformer")
    holder = transformer.rotary_emb if hasattr(transformer, "rotary_emb") else transformer.h[0].attn
    table: Tensor = holder.embed_positions
    sine, cosine = table.to(positions.device)[positions].to(like.dtype).chunk(2, dim=-1)
    return {"": Rotation(cosine.repeat_interleave(2, dim=-1), sine.repeat_interleave(2, dim=-1))}


def gptj(config: PreTrainedConfig) -> Family:
    """GPT-J: Wang and Komatsuzaki 2021. Attention and the MLP run in parallel and share one norm."""
    return Family(
        embedding="transformer.wte",
        blocks="transformer.h",
        attention_norm="ln_1",
        attention="attn",
        project=separate(),
        output_projection="attn.out_proj",
        mlp_norm="ln_1",
        down_projection="mlp.fc_out",
        final_norm="transformer.ln_f",
        neurons=int(config.n_inner or 4 * config.hidden_size),
        parallel=True,
        rotary=_gptj_rotary,
        rotate=rotate_pairs,
        scaling=1 / math.sqrt(config.hidden_size // config.num_attention_heads),
    )


def gpt_neox(config: PreTrainedConfig) -> Family:
    """GPT-NeoX and Pythia: arXiv 2204.06745. Attention and the MLP run in parallel or not, with a norm each."""
    parallel = bool(config.use_parallel_residual)
    return Family(
        embedding="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        attention_norm="input_layernorm",
        attention="attention",
        project=grouped("query_key_value"),
        output_projection="attention.dense",
        mlp_norm="post_attention_layernorm",
        down_projection="mlp.dense_4h_to_h",
        final_norm="gpt_neox.final_layer_norm",
        neurons=int(config.intermediate_size),
        parallel=parallel,
        rotary=rotary_module("gpt_neox.rotary_emb"),
        rotate=rotate_halves,
    )


def _opt_positions(model: nn.Module, embeddings: Tensor, positions: Tensor) -> Tensor:
    # The module shifts the positions itself. Its first argument, a mask, is not used if it is given positions.
    added: Tensor = model.get_submodule("model.decoder.embed_positions")(positions, position_ids=positions)
    return embeddings + added.to(embeddings.device)


def opt(config: PreTrainedConfig) -> Family:
    """OPT: arXiv 2205.01068. The block itself has the modules of the MLP, whose norm is called final_layer_norm."""
    if not config.do_layer_norm_before:
        refuse(
            config,
            "it norms the residual stream after each part (do_layer_norm_before is false), so parts do not add up",
        )
    if config.word_embed_proj_dim != config.hidden_size:
        refuse(config, "its token embeddings are narrower than the residual stream (word_embed_proj_dim)")
    if config._remove_final_layer_norm:  # noqa: SLF001 - what transformers calls it
        refuse(config, "it has no final norm")
    return Family(
        embedding="model.decoder.embed_tokens",
        enter=_opt_positions,
        blocks="model.decoder.layers",
        attention_norm="self_attn_layer_norm",
        attention="self_attn",
        # The model scales the queries, so they enter the scores scaled.
        project=scaled_queries(separate(), (config.hidden_size // config.num_attention_heads) ** -0.5),
        scaling=1.0,
        output_projection="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        feed_forward=in_a_row("fc1", "activation_fn", "fc2"),
        down_projection="fc2",
        final_norm="model.decoder.final_layer_norm",
        neurons=int(config.ffn_dim),
    )


def bloom(config: PreTrainedConfig) -> Family:
    """BLOOM: arXiv 2211.05100. Linear biases, a norm after the embedding, an MLP that adds the stream itself."""
    if config.apply_residual_connection_post_layernorm:
        refuse(
            config, "it carries the normed stream on (apply_residual_connection_post_layernorm), so parts do not add up"
        )
    if config.slow_but_exact and config.pretraining_tp > 1:
        refuse(config, "its configuration sets slow_but_exact; expected false")
    return Family(
        embedding="transformer.word_embeddings",
        enter=normed("transformer.word_embeddings_layernorm"),
        blocks="transformer.h",
        attention_norm="input_layernorm",
        attention="self_attention",
        project=grouped("query_key_value"),
        output_projection="self_attention.dense",
        mlp_norm="post_attention_layernorm",
        feed_forward=adding_feed_forward(),
        down_projection="mlp.dense_4h_to_h",
        final_norm="transformer.ln_f",
        neurons=4 * int(config.hidden_size),
        scaling=1 / math.sqrt(config.hidden_size // config.num_attention_heads),
        key_bias=LinearBias(int(config.num_attention_heads)),
    )


def falcon(config: PreTrainedConfig) -> Family:
    """Falcon: arXiv 2311.16867. Three layouts of heads, three layouts of norms, and rotary or linear positions."""
    heads, grown = int(config.num_attention_heads), bool(config.new_decoder_architecture)
    parallel = grown or bool(config.parallel_attn)
    if grown and not config.parallel_attn:
        refuse(config, "it sets new_decoder_architecture without parallel_attn, which transformers cannot run either")
    two_norms = grown and config.num_ln_in_parallel_attn != 1
    scaling = 1 / math.sqrt(config.hidden_size // heads)
    one_key_head = bool(config.multi_query) and not grown
    bias = LinearBias(heads, torch.bfloat16, scaling) if config.alibi else None
    return Family(
        embedding="transformer.word_embeddings",
        blocks="transformer.h",
        attention_norm="ln_attn" if two_norms else "input_layernorm",
        attention="self_attention",
        project=grouped("query_key_value"),
        output_projection="self_attention.dense",
        mlp_norm="ln_mlp" if two_norms else ("input_layernorm" if parallel else "post_attention_layernorm"),
        down_projection="mlp.dense_4h_to_h",
        final_norm="transformer.ln_f",
        neurons=int(config.ffn_hidden_size),
        parallel=parallel,
        rotary=None if config.alibi else rotary_module("transformer.rotary_emb"),
        rotate=None if config.alibi else rotate_halves,
        scaling=scaling,
        key_bias=bias,
        key_value_heads=1 if one_key_head else int(config.num_kv_heads if grown else heads),
    )
