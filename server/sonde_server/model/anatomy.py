"""Where each component lives in each architecture.

A decoder is seen as: an embedding, an entrance (positions, multipliers), blocks that add attention's and the
MLP's output to the residual stream, a final norm and an unembedding. A `Family` names the modules that play
these parts; `Decoder` runs them on packed tokens [N, D]: N tokens of any number of sequences, one after the
other. Everything but attention treats each token alone, so only attention has to know which belong together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..domain import HEADED, PAIRWISE, Component
from ..errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class BlockParts:
    """The modules of one block. `attention_norm` and `mlp_norm` come before, the `post_` ones after."""

    attention_norm: nn.Module
    attention: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    down_projection: nn.Module


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: where its parts are, and how its tokens enter."""

    embedding: Callable[[PreTrainedModel], nn.Module]
    blocks: Callable[[PreTrainedModel], nn.ModuleList]
    parts: Callable[[nn.Module], BlockParts]
    final_norm: Callable[[PreTrainedModel], nn.Module]
    # What is added to the token embeddings, by position, before the first block.
    position_embedding: Callable[[PreTrainedModel], nn.Module] | None = None
    # Computes what rotary attention needs, by position.
    rotary: Callable[[PreTrainedModel], nn.Module] | None = None
    neurons: Callable[[PreTrainedModel], int] = field(default=lambda model: int(model.config.intermediate_size))
    # Configurations of this family that are not run exactly: a reason, or None.
    refuse: Callable[[PreTrainedModel], str | None] = field(default=lambda model: None)


def _gpt2_parts(block: nn.Module) -> BlockParts:
    return BlockParts(block.ln_1, block.attn, block.ln_2, block.mlp, block.mlp.c_proj)  # type: ignore[arg-type,union-attr]


def _llama_parts(block: nn.Module) -> BlockParts:
    return BlockParts(
        block.input_layernorm,  # type: ignore[arg-type]
        block.self_attn,  # type: ignore[arg-type]
        block.post_attention_layernorm,  # type: ignore[arg-type]
        block.mlp,  # type: ignore[arg-type]
        block.mlp.down_proj,  # type: ignore[arg-type,union-attr]
    )


def _gpt2_refuse(model: PreTrainedModel) -> str | None:
    if model.config.add_cross_attention:
        return "add_cross_attention is set; only decoders without an encoder are hosted"
    return None


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        embedding=lambda model: model.transformer.wte,
        blocks=lambda model: model.transformer.h,
        parts=_gpt2_parts,
        final_norm=lambda model: model.transformer.ln_f,
        position_embedding=lambda model: model.transformer.wpe,
        neurons=lambda model: int(model.config.n_inner or 4 * model.config.hidden_size),
        refuse=_gpt2_refuse,
    ),
    "llama": Family(
        embedding=lambda model: model.model.embed_tokens,
        blocks=lambda model: model.model.layers,
        parts=_llama_parts,
        final_norm=lambda model: model.model.norm,
        rotary=lambda model: model.model.rotary_emb,
    ),
}


class Decoder:
    """A loaded model, taken apart after its family."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModel for an unknown family or a variant that would not be exact."""
        config = model.config
        family = FAMILIES.get(config.model_type)
        if family is None:
            known = ", ".join(sorted(FAMILIES))
            raise UnsupportedModel(
                f"models of type {config.model_type!r} are not known to this server; known are: {known}"
            )
        if reason := family.refuse(model):
            raise UnsupportedModel(f"this {config.model_type} model cannot be hosted: {reason}")
        self.model = model
        self.family = family
        self.embedding = family.embedding(model)
        self.blocks = [family.parts(block) for block in family.blocks(model)]
        self.final_norm = family.final_norm(model)
        self.position_embedding = family.position_embedding(model) if family.position_embedding else None
        self.rotary = family.rotary(model) if family.rotary else None
        self.unembedding: nn.Module = model.get_output_embeddings()
        self.layers = len(self.blocks)
        self.hidden_size = int(config.hidden_size)
        self.heads = int(config.num_attention_heads)
        self.key_value_heads = int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.head_size = int(getattr(config, "head_dim", None) or self.hidden_size // self.heads)
        self.neurons = family.neurons(model)
        self.vocabulary_size = int(self.unembedding.weight.shape[0])  # type: ignore[union-attr,arg-type]
        self.unavailable: dict[Component, str] = {}

    @property
    def device(self) -> torch.device:
        """Where the tokens enter."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the residual stream is computed in."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def selected_shape(
        self, component: Component, units: Sequence[int] | None, positions: int, tokens: int
    ) -> tuple[int, ...]:
        """Shape of a component at `positions` of a prompt of `tokens`, and at `units` (None: all)."""
        widths = {
            Component.KEY: self.key_value_heads,
            Component.VALUE: self.key_value_heads,
            Component.NEURON: self.neurons,
            Component.LOGITS: self.vocabulary_size,
        }
        full = self.heads if component in HEADED | PAIRWISE else self.hidden_size
        count = widths.get(component, full) if units is None else len(units)
        if component in PAIRWISE:
            return (count, positions, tokens)
        return (positions, count, self.head_size) if component in HEADED else (positions, count)

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
