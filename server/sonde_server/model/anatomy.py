"""A model taken apart: where each component lies, and how a block is run on packed tokens.

A decoder is seen as: an embedding, an entrance (positions, multipliers), blocks that add attention's and the
MLP's output to the residual stream, a final norm and an unembedding. A `Family` names the modules that play
these parts; `Decoder` runs them on packed tokens [N, D]: N tokens of any number of sequences, one after the
other. Everything but attention treats each token alone, so only attention has to know which belong together;
it lies with the engine, between `project` and `attention_output`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..domain import Component, Sized
from ..errors import UnsupportedModel
from .attention import AttentionSettings
from .families import Family, family_of
from .projections import Heads, Projected, Rotation


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one block. The norms come before what they are named after."""

    attention_norm: nn.Module
    attention: nn.Module
    output_projection: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    down_projection: nn.Module

    @classmethod
    def of(cls, block: nn.Module, family: Family) -> "Block":
        """The parts of a block."""
        return cls(
            block.get_submodule(family.attention_norm),
            block.get_submodule(family.attention),
            block.get_submodule(family.output_projection),
            block.get_submodule(family.mlp_norm),
            block.get_submodule(family.mlp),
            block.get_submodule(family.down_projection),
        )


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
        self.family = family
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
    def end_tokens(self) -> frozenset[int]:
        """The tokens after which the model has nothing more to say."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        if ends is None:
            return frozenset()
        return frozenset([int(ends)] if isinstance(ends, int) else [int(end) for end in ends])

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

    def rotation(self, like: Tensor, positions: Tensor) -> Rotation | None:
        """What the projections want to know of the positions [N]."""
        if self.rotary is None:
            return None
        cosine, sine = self.rotary(like.unsqueeze(0), position_ids=positions.unsqueeze(0))
        return Rotation(cosine[0], sine[0])

    def project(self, layer: int, stream: Tensor, rotation: Rotation | None) -> Projected:
        """Queries [N, H, d], keys and values [N, K, d] of the residual stream [N, D], as the scores use them."""
        parts = self.blocks[layer]
        heads = Heads(self.heads, self.key_value_heads, self.head_size)
        query, key, value = self.family.project(parts.attention, parts.attention_norm(stream), heads)
        if self.family.rotate is not None and rotation is not None:
            query, key = self.family.rotate(query, rotation), self.family.rotate(key, rotation)
        return query, key, value

    def attention_settings(self, layer: int) -> AttentionSettings:
        """How queries, keys and values are put together in this block."""
        return AttentionSettings(float(self.blocks[layer].attention.scaling))  # type: ignore[arg-type]

    def attention_output(self, layer: int, mixed: Tensor) -> Tensor:
        """What attention adds to the residual stream [N, D], from its heads' mixes of values [N, H, d]."""
        output: Tensor = self.blocks[layer].output_projection(mixed.flatten(1))
        return output

    def mlp_output(self, layer: int, stream: Tensor, neurons: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the MLP adds to the residual stream [N, D]; `neurons` sees and may change its neurons [N, F]."""
        parts = self.blocks[layer]
        with ExitStack() as hooks:
            if neurons is not None:
                visit = neurons  # what the hook below calls is never None

                def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                    return (visit(inputs[0][0]).unsqueeze(0), *inputs[1:])

                hooks.callback(parts.down_projection.register_forward_pre_hook(before).remove)
            output: Tensor = parts.mlp(parts.mlp_norm(stream).unsqueeze(0))
        return output[0]

    def norm(self, stream: Tensor) -> Tensor:
        """The final norm of [N, D]."""
        normed: Tensor = self.final_norm(stream)
        return normed

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [N, V] of what the final norm gave."""
        logits: Tensor = self.unembedding(normed)
        return logits
