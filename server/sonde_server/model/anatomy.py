"""A model taken apart: where each component lies, and how a block is run on packed tokens.

A decoder is seen as: an embedding, an entrance (positions, multipliers), blocks that add attention's and the
MLP's output to the residual stream, a final norm and an unembedding. A `Family` names the modules that play
these parts; `Decoder` runs them on packed tokens [N, D]: N tokens of any number of sequences, one after the
other. Everything but attention treats each token alone, so only attention has to know which belong together;
it lies with the engine, between `project` and `attention_output`.

The blocks may lie on several devices. `place` moves the stream from one to the next.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModel
from ..questions.places import Component, Sized
from .attention import AttentionSettings
from .devices import device_of, parameter_of
from .families import Family, family_of
from .packing import Packed
from .projections import Heads, Projected
from .rotary import Rotations, rotate_by_length, scalings

# Embeddings of this many tokens are made at once while their deviation is measured.
TOKENS_AT_ONCE = 4096
# What stands for the longest prompt of a model whose positions know no end.
ANY_LENGTH = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one block. Norms come before what they are named after, post-norms behind."""

    module: nn.Module
    device: torch.device
    attention_norm: nn.Module
    attention: nn.Module
    output_projection: nn.Module
    attention_post_norm: nn.Module
    mlp_norm: nn.Module
    down_projection: nn.Module | None
    mlp_post_norm: nn.Module
    settings: AttentionSettings

    @classmethod
    def of(cls, block: nn.Module, family: Family, layer: int) -> "Block":
        """The parts of a block."""

        def part(path: str | None) -> nn.Module:
            return nn.Identity() if path is None else block.get_submodule(path)

        attention = part(family.attention)
        return cls(
            block,
            device_of(block),
            part(family.attention_norm),
            attention,
            part(family.output_projection),
            part(family.attention_post_norm),
            part(family.mlp_norm),
            None if family.down_projection is None else part(family.down_projection),
            part(family.mlp_post_norm),
            AttentionSettings(
                float(attention.scaling) if family.scaling is None else family.scaling,  # type: ignore[arg-type]
                None if family.windows is None else family.windows[layer],
                family.softcap,
                family.key_bias,
                None if family.sinks is None else parameter_of(attention, family.sinks),
            ),
        )


def _weighted(module: nn.Module) -> nn.Embedding | nn.Linear | Packed:
    if not isinstance(module, nn.Embedding | nn.Linear | Packed):
        raise UnsupportedModel(f"an embedding or unembedding of type {type(module).__name__} is not known")
    return module


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    several = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) for end in several):
        raise UnsupportedModel(f"expected token ids as eos_token_id of the generation configuration, got {ends!r}")
    return frozenset(several)


class Decoder(Sized):
    """A loaded model, taken apart after its family."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModel as `family_of` does."""
        config = model.config.get_text_config()
        family = family_of(model.config)
        self.model = model
        self.family = family
        self.embedding = _weighted(model.get_submodule(family.embedding))
        self.blocks = [
            Block.of(block, family, layer) for layer, block in enumerate(model.get_submodule(family.blocks).children())
        ]
        self.final_norm = model.get_submodule(family.final_norm)
        self.unembedding = _weighted(model.get_output_embeddings())
        self.layers = len(self.blocks)
        if not self.layers:
            raise UnsupportedModel("the model has no layers")
        self.hidden_size = int(config.hidden_size)
        self.heads = int(config.num_attention_heads)
        self.key_value_heads = family.key_value_heads or int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.head_size = int(getattr(config, "head_dim", None) or self.hidden_size // self.heads)
        self.neurons = 0 if family.down_projection is None else family.neurons
        self.vocabulary_size = int(self.unembedding.weight.shape[0])
        self.max_positions = int(getattr(config, "max_position_embeddings", None) or ANY_LENGTH)
        self.unavailable: dict[Component, str] = dict(family.unavailable)
        # Where each block's input lies; behind the last it is the final norm's.
        self.devices = [*(block.device for block in self.blocks), device_of(self.final_norm)]
        self.device = device_of(self.embedding)
        self.dtype = self.embedding.weight.dtype
        # How attention is computed where nobody asks for scores; some settings no kernel computes.
        self.attention = "eager" if any(block.settings.explicit for block in self.blocks) else "sdpa"
        self._heads = Heads(self.heads, self.key_value_heads, self.head_size)
        # The tokens that end a generated text.
        self.end_tokens = _end_tokens(model)
        # Prompts of more tokens than this are rotated otherwise than shorter ones.
        self._threshold = scalings(config).get("longrope")

    @property
    def longest_alike(self) -> int | None:
        """Prompts of more tokens than this have other rotary angles at every position; None: all have the same."""
        return self._threshold

    def place(self, stream: Tensor, depth: int) -> Tensor:
        """The stream [N, D] where the block at `depth` computes."""
        return stream.to(self.devices[depth])

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [N, D] of ids [N], before positions."""
        embedded: Tensor = self.embedding(tokens)
        return embedded

    def enter(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """What the first block receives, from token embeddings [N, D] at positions [N]."""
        return embeddings if self.family.enter is None else self.family.enter(self.model, embeddings, positions)

    def rotation(self, like: Tensor, positions: Tensor, lengths: Callable[[torch.device], Tensor]) -> Rotations | None:
        """What the projections want to know of the positions [N], in prompts of `lengths` [N]."""
        rotary = self.family.rotary
        if rotary is None:
            return None
        if self._threshold is None or not len(positions):
            return rotary(self.model, like, positions)
        return rotate_by_length(rotary, self._threshold, self.model, like, positions, lengths(positions.device))

    def project(self, layer: int, stream: Tensor, rotations: Rotations | None) -> Projected:
        """Queries [N, H, d], keys and values [N, K, d] of the residual stream [N, D], as the scores use them."""
        parts, family = self.blocks[layer], self.family
        query, key, value = family.project(parts.attention, parts.attention_norm(stream), self._heads)
        kind = "" if family.kinds is None else family.kinds[layer]
        if family.rotate is not None and rotations is not None and kind is not None:
            rotation = rotations[kind].to(query.device)
            query, key = family.rotate(query, rotation), family.rotate(key, rotation)
        if family.turned_norms is not None:
            query, key = (
                parts.attention.get_submodule(norm)(heads)
                for norm, heads in zip(family.turned_norms, (query, key), strict=True)
            )
        return query, key, value

    def attention_settings(self, layer: int) -> AttentionSettings:
        """How queries, keys and values are put together in this block."""
        return self.blocks[layer].settings

    def attention_output(self, layer: int, mixed: Tensor) -> Tensor:
        """What attention adds to the residual stream [N, D], from its heads' mixes of values [N, H, d]."""
        parts = self.blocks[layer]
        return self._added(layer, parts.attention_post_norm(parts.output_projection(mixed.flatten(1))))

    def mlp_output(self, layer: int, stream: Tensor, neurons: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the MLP adds to the residual stream [N, D]; `neurons` sees and may change its neurons [N, F]."""
        parts = self.blocks[layer]
        with ExitStack() as hooks:
            if neurons is not None:
                visit = neurons  # what the hook below calls is never None
                assert parts.down_projection is not None

                def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                    return (visit(inputs[0][0]).unsqueeze(0), *inputs[1:])

                hooks.callback(parts.down_projection.register_forward_pre_hook(before).remove)
            output = self.family.feed_forward(parts.module, parts.mlp_norm(stream))
        return self._added(layer, parts.mlp_post_norm(output))

    def neurons_of(self, layer: int, stream: Tensor) -> Tensor:
        """The MLP's neurons [N, F], of the residual stream [N, D]; its second half is not run."""
        parts = self.blocks[layer]
        assert parts.down_projection is not None

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            raise _Neurons(inputs[0][0])

        hook = parts.down_projection.register_forward_pre_hook(stop)
        try:
            self.family.feed_forward(parts.module, parts.mlp_norm(stream))
        except _Neurons as reached:
            return reached.values
        finally:
            hook.remove()
        raise AssertionError("the MLP does not call its second half")

    def neurons_output(self, layer: int, neurons: Tensor) -> Tensor:
        """What the MLP adds when its neurons are [N, F]."""
        parts = self.blocks[layer]
        assert parts.down_projection is not None
        return self._added(layer, parts.mlp_post_norm(parts.down_projection(neurons.unsqueeze(0))[0]))

    def _added(self, layer: int, output: Tensor) -> Tensor:
        factor = self.family.residual_multiplier
        added: Tensor = output if factor == 1.0 else output * factor
        return added.to(self.blocks[layer].device)

    def norm(self, stream: Tensor) -> Tensor:
        """The final norm of [N, D]."""
        normed: Tensor = self.final_norm(stream.to(self.devices[-1]))
        return normed

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [N, V] of what the final norm gave, as the model's own prediction has them."""
        logits: Tensor = self.unembedding(normed.to(device_of(self.unembedding)))
        return logits if self.family.logits is None else self.family.logits(logits)

    def embedding_deviation(self) -> float:
        """Unbiased standard deviation of all entries of all tokens' embeddings."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, int(self.embedding.weight.shape[0]), TOKENS_AT_ONCE):
            stop = min(start + TOKENS_AT_ONCE, int(self.embedding.weight.shape[0]))
            entries = self.embed(torch.arange(start, stop, device=self.device)).double()
            count += entries.numel()
            total += float(entries.sum())
            squares += float(entries.square().sum())
        return float(((squares - total**2 / count) / (count - 1)) ** 0.5)


class _Neurons(Exception):
    """Leaves an MLP in its middle."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values
