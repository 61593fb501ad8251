"""The questions that Sonde answers, free of protobuf and of torch.

`wire` makes these from requests, `methods` answers them. Everything here is resolved and checked: positions
count from the start, layers and units exist, texts are token ids, values are finite and broadcast.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


class Component(enum.IntEnum):
    """A kind of activation, numbered as in the contract."""

    TOKEN_EMBEDDING = 1
    RESIDUAL_PRE = 2
    RESIDUAL_MID = 3
    RESIDUAL_POST = 4
    ATTENTION_OUT = 5
    MLP_OUT = 6
    HEAD_OUT = 7
    QUERY = 8
    KEY = 9
    VALUE = 10
    ATTENTION_SCORES = 11
    ATTENTION_PATTERN = 12
    NEURON = 13
    FINAL_NORM = 14
    LOGITS = 15


LAYERLESS = frozenset({Component.TOKEN_EMBEDDING, Component.FINAL_NORM, Component.LOGITS})
HEADED = frozenset({Component.HEAD_OUT, Component.QUERY, Component.KEY, Component.VALUE})
PAIRWISE = frozenset({Component.ATTENTION_SCORES, Component.ATTENTION_PATTERN})
# A sweep goes over the units of these when it names none; the units of the others are edited together.
UNIT_SWEPT = HEADED | PAIRWISE | {Component.NEURON}


class Metric(enum.IntEnum):
    """Which number of a target is differentiated."""

    LOGIT = 1
    LOG_PROBABILITY = 2
    PROBABILITY = 3


class Axis(enum.IntEnum):
    """An axis of a sweep."""

    LAYER = 1
    UNIT = 2
    POSITION = 3


class Sized:
    """The sizes of a decoder, and the shapes that follow from them."""

    __slots__ = ()

    layers: int
    hidden_size: int
    heads: int
    key_value_heads: int
    head_size: int
    neurons: int
    vocabulary_size: int

    def units(self, component: Component) -> int:
        """How many units a site of this component can name."""
        if component in (Component.KEY, Component.VALUE):
            return self.key_value_heads
        if component in HEADED or component in PAIRWISE:
            return self.heads
        if component is Component.NEURON:
            return self.neurons
        return self.vocabulary_size if component is Component.LOGITS else self.hidden_size

    def selected_shape(
        self, component: Component, units: Sequence[int] | None, positions: int, tokens: int
    ) -> tuple[int, ...]:
        """Shape of a component as one run selects it: `positions` of a prompt of `tokens`, and `units` (all: None)."""
        count = self.units(component) if units is None else len(units)
        if component in PAIRWISE:
            return (count, positions, tokens)
        if component in HEADED:
            return (positions, count, self.head_size)
        return (positions, count)


@dataclass(frozen=True, slots=True)
class ModelDescription(Sized):
    """What can be asked of the hosted model, and within which bounds."""

    name: str
    revision: str
    architecture: str
    data_type: str
    device: str
    attention: str
    layers: int
    hidden_size: int
    heads: int
    key_value_heads: int
    head_size: int
    neurons: int
    vocabulary_size: int
    max_positions: int
    parameters: int
    unavailable: Mapping[Component, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the text with each token's place in it where the prompt was given as text."""

    tokens: tuple[int, ...]
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured; with a contrast the logit is the difference of the two."""

    token: int
    contrast: int | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A place, or several alike. `layers` is (0,) for a component that takes none; None stands for all."""

    component: Component
    layers: tuple[int, ...]
    units: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    from_position: int | None = None

    def positions_within(self, tokens: int) -> tuple[int, ...]:
        """The positions meant in a prompt of `tokens` tokens."""
        if self.from_position is not None:
            return tuple(range(self.from_position, tokens))
        return tuple(range(tokens)) if self.positions is None else self.positions


@dataclass(frozen=True, slots=True)
class Scale:
    """x -> factor * x."""

    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Set:
    """x -> values."""

    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """x -> x + values."""

    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Multiply:
    """x -> x * values."""

    values: Values


@dataclass(frozen=True, slots=True)
class Patch:
    """x -> its value in the unchanged runs of these sources, averaged; `positions` pair with the site's.

    `layer`: where in the sources; None stands for the site's own.
    """

    sources: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """x -> x + standard_deviation * RandomState(seed).randn(shape selected)."""

    standard_deviation: float
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """x -> x less its part along `direction`, over the last axis."""

    direction: Values


@dataclass(frozen=True, slots=True)
class Knockout:
    """The site's queries do not attend to these keys; None stands for all keys."""

    keys: tuple[int, ...] | None = None


Operation = Scale | Set | Add | Multiply | Patch | Noise | ProjectOut | Knockout


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one site."""

    site: Site
    operation: Operation


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits made together in one run."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One run per layer x unit x position, the last axis fastest; the axes are resolved."""

    edit: Edit
    layers: tuple[int, ...]
    units: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    together: frozenset[Axis]
    layer_window: int
    always: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """Every run is continued by up to so many tokens; at temperature 0 by the most probable ones."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1
    ignore_end_token: bool = False

    @property
    def answer_bytes(self) -> int:
        """About the size of one run's tokens in an answer, at most: id, the text twice, and their framing."""
        return 48 * self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read in every run."""

    targets: tuple[Target, ...]
    position: int
    top_k: int = 0
    kl_divergence: bool = False
    activations: tuple[Site, ...] = ()
    generation: Generation | None = None


@dataclass(frozen=True, slots=True)
class InterveneQuestion:
    """What happens to the prediction under each of these interventions?"""

    prompt: Prompt
    sources: tuple[Prompt, ...]
    plan: tuple[Intervention, ...] | Sweep
    readout: Readout
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """The target read at every depth, and optionally the gradient of its final value."""

    gradient_norms: bool
    metric: Metric


@dataclass(frozen=True, slots=True)
class GaussianCorruption:
    """Standard normal noise, scaled by `deviations` of the embedding matrix or by a fixed deviation."""

    deviations: float | None = 3.0
    standard_deviation: float | None = None
    samples: int = 10
    seed: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class ExplicitNoise:
    """Noise [samples, corrupted positions, D] as the caller sent it."""

    values: Values


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Another prompt of as many tokens, whose embeddings take the place of the prompt's where they differ."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class CausalTracing:
    """Corrupt the subject, restore one clean state at a time (Meng et al. 2022)."""

    corruption: GaussianCorruption | ExplicitNoise | Counterfactual
    replace: bool
    subject: tuple[int, ...]
    components: tuple[Component, ...]
    window: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    per_sample: bool


@dataclass(frozen=True, slots=True)
class Activations:
    """The values at these sites."""

    sites: tuple[Site, ...]


Method = TokenProbability | CausalTracing | Activations


@dataclass(frozen=True, slots=True)
class TraceQuestion:
    """What made this prediction? Without a method: what is it?"""

    prompt: Prompt
    targets: tuple[Target, ...]
    position: int
    top_k: int
    method: Method | None
    dry_run: bool = False
