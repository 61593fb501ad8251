"""What the server needs to know about an architecture to run it on packed tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedConfig

from ...errors import UnsupportedModel
from ...questions.places import Component
from ..attention import KeyBias
from ..feedforward import FeedForward, feed_forward
from ..projections import Project
from ..rotary import Rotary, Rotate
from ..vision import Vision

# From the model, token embeddings [N, D] and positions [N] to the input of the first block.
Enter = Callable[[nn.Module, Tensor, Tensor], Tensor]

PARALLEL = "in this model attention and the MLP both read RESIDUAL_PRE, so there is no residual stream between them"
EXPERTS = (
    "in this model the MLPs are mixtures of experts: each token is routed to a few experts, so no neuron has a value "
    "at every token"
)


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, for one configuration.

    The paths of a block's parts are relative to the block; those of `embedding`, `blocks` and `final_norm` are relative
    to the model.
    """

    embedding: str
    blocks: str
    attention: str
    # From the output of attention's norm to queries, keys and values, before rotation.
    project: Project
    output_projection: str
    final_norm: str
    # The width of the MLP. Without meaning for a family that has no down projection.
    neurons: int
    # The norms of the inputs of attention and the MLP, if any.
    attention_norm: str | None = None
    mlp_norm: str | None = None
    feed_forward: FeedForward = field(default_factory=feed_forward)
    # The module that the neurons are the input of. None: a mixture of experts, where no such module sees every token.
    down_projection: str | None = None
    # The norms of the outputs of attention and the MLP before they are added to the residual stream, if any.
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    # The factor of the outputs of attention and the MLP before they are added to the residual stream.
    residual_multiplier: float = 1.0
    # Whether attention and the MLP both read the block's input.
    parallel: bool = False
    # The computation between the token embedding and the first block: positions, norms or multipliers.
    enter: Enter | None = None
    # Computes cosines and sines from positions, and rotates queries and keys by them.
    rotary: Rotary | None = None
    rotate: Rotate | None = None
    # The kind of each layer, if rotary angles depend on it. None for a layer that does not rotate.
    kinds: Sequence[str | None] | None = None
    # The attention module's norms of queries and keys, applied to each head after the rotation.
    turned_norms: tuple[str, str] | None = None
    # The factor of the scores. None: the `scaling` attribute of the attention module.
    scaling: float | None = None
    # How many keys a query sees, for each layer. None: all.
    windows: Sequence[int | None] | None = None
    softcap: float | None = None
    key_bias: KeyBias | None = None
    # The attention module's parameter of scores that have no value.
    sinks: str | None = None
    # The computation between the unembedding and the logits.
    logits: Callable[[Tensor], Tensor] | None = None
    # The number of key and value heads, if it is not num_key_value_heads of the configuration.
    key_value_heads: int | None = None
    # A rotary scaling that the configuration calls dynamic is the same for prompts of every length.
    fixed_scaling: bool = False
    # How it takes an image among its tokens.
    vision: Vision | None = None

    @property
    def unavailable(self) -> Mapping[Component, str]:
        """The components that this model does not have, with the reason for each."""
        missing = {}
        if self.parallel:
            missing[Component.RESIDUAL_MID] = PARALLEL
        if self.down_projection is None:
            missing[Component.NEURON] = EXPERTS
        return missing


# From a model's configuration to its family. Raises UnsupportedModel if it would not be computed exactly.
Recipe = Callable[[PreTrainedConfig], Family]


def refuse(config: PreTrainedConfig, reason: str) -> None:
    """Raises UnsupportedModel with the type of the model and the reason."""
    raise UnsupportedModel(f"this {config.model_type} model is not supported: {reason}")


def with_positions(path: str) -> Enter:
    """Adds learned embeddings of the positions."""

    def enter(model: nn.Module, embeddings: Tensor, positions: Tensor) -> Tensor:
        added: Tensor = model.get_submodule(path)(positions)
        return embeddings + added.to(embeddings.device)

    return enter


def normed(path: str) -> Enter:
    """Applies a norm to the token embedding."""

    def enter(model: nn.Module, embeddings: Tensor, _positions: Tensor) -> Tensor:
        entered: Tensor = model.get_submodule(path)(embeddings)
        return entered

    return enter


def multiplied(factor: float) -> Callable[[Tensor], Tensor]:
    """Multiplies the logits by a factor."""
    return lambda logits: logits * factor


def divided(divisor: float) -> Callable[[Tensor], Tensor]:
    """Divides the logits by a number."""
    return lambda logits: logits / divisor


def capped(cap: float | None) -> Callable[[Tensor], Tensor] | None:
    """Caps the logits between -cap and cap: cap tanh(logit / cap)."""
    return None if cap is None else lambda logits: (logits / cap).tanh() * cap


def same_window(config: PreTrainedConfig) -> list[int | None] | None:
    """The sliding window of every layer, if there is one."""
    window = config.sliding_window
    return None if window is None else [int(window)] * config.num_hidden_layers


def windows_by_kind(config: PreTrainedConfig) -> list[int | None] | None:
    """The sliding window of the layers whose type is sliding_attention."""
    if "sliding_attention" not in config.layer_types:
        return None
    if config.sliding_window is None:
        refuse(config, "it has layers of type sliding_attention, but no sliding_window")
    return [int(config.sliding_window) if kind == "sliding_attention" else None for kind in config.layer_types]
