"""The known architectures: which modules play which part, and how they are put together.

One entry a family. Everything an entry says is checked against the model itself when it is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedConfig

from ..errors import UnsupportedModel
from .projections import Project, Rotate, fused, rotate_halves, separate


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: the paths of its modules, and how its tokens enter.

    The paths of `attention_norm` to `down_projection` start at a block, the others at the model.
    """

    embedding: str
    blocks: str
    attention_norm: str
    attention: str
    # From what attention's norm gives to queries, keys and values, before they are rotated.
    project: Project
    output_projection: str
    mlp_norm: str
    mlp: str
    down_projection: str
    final_norm: str
    # Added to the token embeddings, by position, before the first block.
    position_embedding: str | None = None
    # Computes what rotary attention needs, by position.
    rotary: str | None = None
    # Turns queries and keys by it.
    rotate: Rotate | None = None
    # The width of the MLP, from the configuration.
    neurons: Callable[[PreTrainedConfig], int] = field(default=lambda config: int(config.intermediate_size))
    # Why a model of this family would not be run exactly, or None.
    refuse: Callable[[PreTrainedConfig], str | None] = field(default=lambda config: None)


def _gpt2_refuse(config: PreTrainedConfig) -> str | None:
    if config.add_cross_attention:
        return "add_cross_attention is set; only decoders without an encoder are hosted"
    if config.reorder_and_upcast_attn:
        return "reorder_and_upcast_attn is set, which changes how attention is rounded"
    return None


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        embedding="transformer.wte",
        blocks="transformer.h",
        attention_norm="ln_1",
        attention="attn",
        project=fused("c_attn"),
        output_projection="attn.c_proj",
        mlp_norm="ln_2",
        mlp="mlp",
        down_projection="mlp.c_proj",
        final_norm="transformer.ln_f",
        position_embedding="transformer.wpe",
        neurons=lambda config: int(config.n_inner or 4 * config.hidden_size),
        refuse=_gpt2_refuse,
    ),
    "llama": Family(
        embedding="model.embed_tokens",
        blocks="model.layers",
        attention_norm="input_layernorm",
        attention="self_attn",
        project=separate("q_proj", "k_proj", "v_proj"),
        output_projection="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        down_projection="mlp.down_proj",
        final_norm="model.norm",
        rotary="model.rotary_emb",
        rotate=rotate_halves,
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The entry of a model's architecture. Raises UnsupportedModel, by name, where it would not be run exactly."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"models of type {config.model_type!r} are not known to this server; known are: {known}")
    if reason := family.refuse(config):
        raise UnsupportedModel(f"this {config.model_type} model cannot be hosted: {reason}")
    return family
