"""The parts of a model: where each component is, and how a block runs on packed tokens.

A decoder consists of an embedding, an entrance (positions, multipliers), blocks that add the outputs of attention and
of the MLP to the residual stream, a final norm and an unembedding. A `Family` names the modules that play these parts.
`Decoder` runs them on packed tokens [N, D]: N tokens of any number of sequences, one sequence after another. Every part
but attention treats each token by itself, so only attention needs to know which tokens form a sequence. The engine
computes attention, between `project` and `attention_output`.

The blocks may be on several devices. `place` moves the stream from one to the next.
"""

from collections.abc import Callable, Sequence
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
from .single_heads import Streams, project_reads, write_heads

# The standard deviation of the embedding is computed over this many tokens at a time.
TOKENS_AT_ONCE = 4096
# The limit of a model whose positions have none.
ANY_LENGTH = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Block:
    """The modules of one block. A norm precedes the part that it is named after, a post-norm follows it."""

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
        raise UnsupportedModel(f"expected an embedding or a linear layer, got a {type(module).__name__}")
    return module


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    several = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) for end in several):
        raise UnsupportedModel(f"expected token ids as eos_token_id of the generation configuration, got {ends!r}")
    return frozenset(several)


class Decoder(Sized):
    """A loaded model, divided into the parts that its family names."""

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
        # The device of each block's input, and as the last entry that of the final norm's.
        self.devices = [*(block.device for block in self.blocks), device_of(self.final_norm)]
        self.device = device_of(self.embedding)
        self.dtype = self.embedding.weight.dtype
        self.data_type = str(self.dtype).removeprefix("torch.")
        # How attention is computed if no scores are asked for. Fused kernels do not support all settings.
        self.attention = "eager" if any(block.settings.explicit for block in self.blocks) else "sdpa"
        self._heads = Heads(self.heads, self.key_value_heads, self.head_size)
        # The tokens that end a generated text.
        self.end_tokens = _end_tokens(model)
        # The longest prompt for which rotary angles do not depend on prompt length (LongRoPE), or None.
        self._threshold = scalings(config).get("longrope")

    @property
    def device_type(self) -> str:
        """The kind of device that it is on, such as "cuda"."""
        return self.device.type

    @property
    def post_normed(self) -> bool:
        """Whether what attention writes goes through a norm, so that heads do not add up in the stream."""
        return self.family.attention_post_norm is not None

    @property
    def longest_alike(self) -> int | None:
        """Longest prompt for which rotary angles do not depend on prompt length (LongRoPE), or None for any length."""
        return self._threshold

    def place(self, stream: Tensor, depth: int) -> Tensor:
        """Moves the stream [N, D] to the device of the block at `depth`."""
        return stream.to(self.devices[depth])

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [N, D] of ids [N], before positions."""
        embedded: Tensor = self.embedding(tokens)
        return embedded

    def enter(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """The input of the first block [N, D], from token embeddings [N, D] at positions [N]."""
        return embeddings if self.family.enter is None else self.family.enter(self.model, embeddings, positions)

    def rotation(self, like: Tensor, positions: Tensor, lengths: Callable[[torch.device], Tensor]) -> Rotations | None:
        """Cosines and sines for `project`, of tokens at positions [N] in prompts of `lengths` [N]."""
        rotary = self.family.rotary
        if rotary is None:
            return None
        if self._threshold is None or not len(positions):
            return rotary(self.model, like, positions)
        return rotate_by_length(rotary, self._threshold, self.model, like, positions, lengths(positions.device))

    def project(self, layer: int, stream: Tensor, rotations: Rotations | None) -> Projected:
        """Queries [N, H, d], keys and values [N, K, d] of the residual stream [N, D], as the scores use them."""
        parts = self.blocks[layer]
        projected = self.family.project(parts.attention, parts.attention_norm(stream), self._heads)
        return self._rotated(layer, projected, rotations)

    def project_reads(self, layer: int, reads: Tensor, streams: Streams, rotations: Rotations | None) -> Projected:
        """As `project`, but each head reads the one of several streams [V, N, D] that `streams` names for it."""
        parts = self.blocks[layer]
        normed = parts.attention_norm(reads.flatten(0, 1)).unflatten(0, reads.shape[:2])
        projected = project_reads(self.family.project, parts.attention, normed, self._heads, streams)
        return self._rotated(layer, projected, rotations)

    def _rotated(self, layer: int, projected: Projected, rotations: Rotations | None) -> Projected:
        parts, family = self.blocks[layer], self.family
        query, key, value = projected
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
        """How this block combines queries, keys and values."""
        return self.blocks[layer].settings

    def attention_output(self, layer: int, mixed: Tensor) -> Tensor:
        """What attention adds to the residual stream [N, D], from each head's mix of values [N, H, d]."""
        parts = self.blocks[layer]
        return self._added(layer, parts.attention_post_norm(parts.output_projection(mixed.flatten(1))))

    def written_by_heads(self, layer: int, moves: Tensor, units: Sequence[int]) -> Tensor:
        """What changes of single heads' mixes [E, N, d], each alone, change in the residual stream: [E, N, D].

        Only where no norm follows attention, so that what heads write adds up.
        """
        return self._added(layer, write_heads(self.blocks[layer].output_projection, moves, units, self._heads))

    def mlp_output(self, layer: int, stream: Tensor, neurons: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the MLP adds to the residual stream [N, D]. `neurons` may replace its neurons [N, F]."""
        parts = self.blocks[layer]
        with ExitStack() as hooks:
            if neurons is not None:
                visit = neurons  # never None in the hook below
                assert parts.down_projection is not None
                visiting = False

                def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
                    nonlocal visiting
                    if visiting:
                        # The visit itself asks what other neurons would write.
                        return None
                    visiting = True
                    visited = visit(inputs[0][0]).unsqueeze(0)
                    visiting = False
                    return (visited, *inputs[1:])

                hooks.callback(parts.down_projection.register_forward_pre_hook(before).remove)
            output = self.family.feed_forward(parts.module, parts.mlp_norm(stream))
        return self._added(layer, parts.mlp_post_norm(output))

    def neurons_of(self, layer: int, stream: Tensor) -> Tensor:
        """The MLP's neurons [N, F] for the residual stream [N, D]. The rest of the MLP is not run."""
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
        raise AssertionError("the MLP does not call its down projection")

    def neurons_output(self, layer: int, neurons: Tensor) -> Tensor:
        """What the MLP adds to the residual stream [N, D], from its neurons [N, F]."""
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
        """Logits [N, V] of the final norm's output, with the model's own scaling or cap."""
        logits: Tensor = self.unembedding(normed.to(device_of(self.unembedding)))
        return logits if self.family.logits is None else self.family.logits(logits)

    def embedding_deviation(self) -> float:
        """Unbiased standard deviation over all entries of the token embedding."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, int(self.embedding.weight.shape[0]), TOKENS_AT_ONCE):
            stop = min(start + TOKENS_AT_ONCE, int(self.embedding.weight.shape[0]))
            entries = self.embed(torch.arange(start, stop, device=self.device)).double()
            count += entries.numel()
            total += float(entries.sum())
            squares += float(entries.square().sum())
        return float(((squares - total**2 / count) / (count - 1)) ** 0.5)


class _Neurons(Exception):
    """Raised to leave an MLP once its neurons are known."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values
