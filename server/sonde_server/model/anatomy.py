"""Where each component lives in each architecture.

A decoder is seen as: an embedding, an entrance (positions, multipliers), blocks that add attention's and the
MLP's output to the residual stream, a final norm and an unembedding. A `Family` names the modules that play
these parts; `Decoder` runs them on packed tokens [N, D]: N tokens of any number of sequences, one after the
other. Everything but attention treats each token alone, so only attention has to know which belong together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..domain import Component, Sized
from ..errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: the paths of its modules, and how its tokens enter.

    The paths of `attention_norm` to `down_projection` start at a block, the others at the model.
    """

    embedding: str
    blocks: str
    attention_norm: str
    attention: str
    mlp_norm: str
    mlp: str
    down_projection: str
    final_norm: str
    # Added to the token embeddings, by position, before the first block.
    position_embedding: str | None = None
    # Computes what rotary attention needs, by position.
    rotary: str | None = None
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
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        down_projection="mlp.down_proj",
        final_norm="model.norm",
        rotary="model.rotary_emb",
    ),
}


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one block. The norms come before what they are named after."""

    attention_norm: nn.Module
    attention: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    down_projection: nn.Module

    @classmethod
    def of(cls, block: nn.Module, family: Family) -> "Block":
        """The parts of a block."""
        return cls(
            block.get_submodule(family.attention_norm),
            block.get_submodule(family.attention),
            block.get_submodule(family.mlp_norm),
            block.get_submodule(family.mlp),
            block.get_submodule(family.down_projection),
        )


def family_of(config: PreTrainedConfig) -> Family:
    """The entry of a model's architecture. Raises UnsupportedModel, by name, where it would not be run exactly."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedModel(f"models of type {config.model_type!r} are not known to this server; known are: {known}")
    if reason := family.refuse(config):
        raise UnsupportedModel(f"this {config.model_type} model cannot be hosted: {reason}")
    return family


def _weighted(module: nn.Module) -> nn.Embedding | nn.Linear:
    if not isinstance(module, nn.Embedding | nn.Linear):
        raise UnsupportedModel(f"an embedding or unembedding of type {type(module).__name__} is not known")
    return module


class Decoder(Sized):
    """A loaded model, taken apart after its family."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModel as `family_of` does."""
        config = model.config
        family = family_of(config)
        self.model = model
        self.embedding = _weighted(model.get_submodule(family.embedding))
        self.blocks = [Block.of(block, family) for block in model.get_submodule(family.blocks).children()]
        self.final_norm = model.get_submodule(family.final_norm)
        self.position_embedding = model.get_submodule(family.position_embedding) if family.position_embedding else None
        self.rotary = model.get_submodule(family.rotary) if family.rotary else None
        self.unembedding = _weighted(model.get_output_embeddings())
        self.layers = len(self.blocks)
        self.hidden_size = int(config.hidden_size)
        self.heads = int(config.num_attention_heads)
        self.key_value_heads = int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.head_size = int(getattr(config, "head_dim", None) or self.hidden_size // self.heads)
        self.neurons = family.neurons(config)
        self.vocabulary_size = int(self.unembedding.weight.shape[0])
        self.unavailable: dict[Component, str] = {}

    @property
    def device(self) -> torch.device:
        """Where the tokens enter."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the residual stream is computed in."""
        return self.embedding.weight.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [N, D] of ids [N], before positions."""
        embedded: Tensor = self.embedding(tokens)
        return embedded

    def enter(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """What the first block receives, from token embeddings [N, D] at positions [N]."""
        if self.position_embedding is None:
            return embeddings
        added: Tensor = embeddings + self.position_embedding(positions)
        return added

    def rotation(self, like: Tensor, positions: Tensor) -> dict[str, object]:
        """What the attention modules want to know of the positions [N]."""
        if self.rotary is None:
            return {}
        return {"position_embeddings": self.rotary(like.unsqueeze(0), position_ids=positions.unsqueeze(0))}

    def attend(self, layer: int, stream: Tensor, rotation: Mapping[str, object]) -> Tensor:
        """What attention adds to the residual stream [N, D]."""
        parts = self.blocks[layer]
        normed = parts.attention_norm(stream.unsqueeze(0))
        output: Tensor = parts.attention(hidden_states=normed, attention_mask=None, **rotation)[0]
        return output[0]

    def transform(self, layer: int, stream: Tensor) -> Tensor:
        """What the MLP adds to the residual stream [N, D]."""
        parts = self.blocks[layer]
        output: Tensor = parts.mlp(parts.mlp_norm(stream.unsqueeze(0)))
        return output[0]

    def norm(self, stream: Tensor) -> Tensor:
        """The final norm of [N, D]."""
        normed: Tensor = self.final_norm(stream)
        return normed

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [N, V] of what the final norm gave."""
        logits: Tensor = self.unembedding(normed)
        return logits
