"""What has to be known of an architecture to run it on packed tokens."""

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

# From the model, token embeddings [N, D] and positions [N] to what the first block receives.
Enter = Callable[[nn.Module, Tensor, Tensor], Tensor]

PARALLEL = (
    "in this model attention and the MLP both read RESIDUAL_PRE and are added together; there is no stream between them"
)
EXPERTS = (
    "in this model the MLPs are mixtures of experts: a token passes through the neurons of the few experts it is "
    "routed to, and no neuron has a value at every token"
)


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, as one configuration of it has it.

    The paths of `attention_norm` to `down_projection` start at a block, the others at the model.
    """

    embedding: str
    blocks: str
    attention: str
    # From what attention's norm gives to queries, keys and values, before they are rotated.
    project: Project
    output_projection: str
    final_norm: str
    # The width of the MLP. Without meaning for a family that has no down projection.
    neurons: int
    # The norms of what attention and the MLP read, where there are any.
    attention_norm: str | None = None
    mlp_norm: str | None = None
    feed_forward: FeedForward = field(default_factory=feed_forward)
    # The module that the neurons are the input of. None: a mixture of experts, where no such module sees every token.
    down_projection: str | None = None
    # The norms of what attention and the MLP give, before it is added, where there are any.
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    # What attention and the MLP give is multiplied by this before it is added.
    residual_multiplier: float = 1.0
    # Attention and the MLP read the same stream, the one before the block.
    parallel: bool = False
    # Positions, norms or multipliers between the token embedding and the first block.
    enter: Enter | None = None
    # Makes what rotary attention needs of the positions, and turns queries and keys by it.
    rotary: Rotary | None = None
    rotate: Rotate | None = None
    # Each layer's kind, where rotary positions differ by it; None: its queries and keys are not turned.
    kinds: Sequence[str | None] | None = None
    # The attention module's norms of queries and of keys, head by head, behind the rotation.
    turned_norms: tuple[str, str] | None = None
    # What scores are multiplied by; None is what the attention module calls `scaling`.
    scaling: float | None = None
    # How many keys a query sees, layer by layer; None is all.
    windows: Sequence[int | None] | None = None
    softcap: float | None = None
    key_bias: KeyBias | None = None
    # The attention module's own parameter of scores without a value.
    sinks: str | None = None
    # What becomes of the unembedding's output.
    logits: Callable[[Tensor], Tensor] | None = None
    # Other numbers of key and value heads than the configuration's num_key_value_heads.
    key_value_heads: int | None = None
    # A rotary scaling that the configuration calls dynamic is the same for prompts of every length.
    fixed_scaling: bool = False

    @property
    def unavailable(self) -> Mapping[Component, str]:
        """The components that this model does not have, with the reason for each."""
        missing = {}
        if self.parallel:
            missing[Component.RESIDUAL_MID] = PARALLEL
        if self.down_projection is None:
            missing[Component.NEURON] = EXPERTS
        return missing


# From a model's configuration to its family. Raises UnsupportedModel where it would not be run exactly.
Recipe = Callable[[PreTrainedConfig], Family]


def refuse(config: PreTrainedConfig, reason: str) -> None:
    """Raises UnsupportedModel."""
    raise UnsupportedModel(f"this {config.model_type} model cannot be hosted: {reason}")


def with_positions(path: str) -> Enter:
    """Embeddings of the positions are added."""

    def enter(model: nn.Module, embeddings: Tensor, positions: Tensor) -> Tensor:
        added: Tensor = model.get_submodule(path)(positions)
        return embeddings + added.to(embeddings.device)

    return enter


def normed(path: str) -> Enter:
    """A norm follows the embedding."""

    def enter(model: nn.Module, embeddings: Tensor, _positions: Tensor) -> Tensor:
        entered: Tensor = model.get_submodule(path)(embeddings)
        return entered

    return enter


def multiplied(factor: float) -> Callable[[Tensor], Tensor]:
    """Logits times a number."""
    return lambda logits: logits * factor


def divided(divisor: float) -> Callable[[Tensor], Tensor]:
    """Logits over a number."""
    return lambda logits: logits / divisor


def capped(cap: float | None) -> Callable[[Tensor], Tensor] | None:
    """Logits between -cap and cap: cap tanh(logit / cap)."""
    return None if cap is None else lambda logits: (logits / cap).tanh() * cap


def same_window(config: PreTrainedConfig) -> list[int | None] | None:
    """The window that all layers have, if any."""
    window = config.sliding_window
    return None if window is None else [int(window)] * config.num_hidden_layers


def windows_by_kind(config: PreTrainedConfig) -> list[int | None] | None:
    """The window of the layers that are called sliding_attention."""
    if "sliding_attention" not in config.layer_types:
        return None
    if config.sliding_window is None:
        refuse(config, "it has layers of type sliding_attention, but no sliding_window")
    return [int(config.sliding_window) if kind == "sliding_attention" else None for kind in config.layer_types]
