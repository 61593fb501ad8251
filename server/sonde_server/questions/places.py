"""Places in a model: components, sites, and the sizes that shapes follow from."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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


# What the senders and receivers of edges are made of, within a block.
EDGE_ENDS = frozenset({Component.HEAD_OUT, Component.QUERY, Component.KEY, Component.VALUE, Component.MLP_OUT})


# A sweep goes over the units of these when it names none; the units of the others are edited together.
UNIT_SWEPT = HEADED | PAIRWISE | {Component.NEURON}


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
    unavailable: Mapping[Component, str]

    @property
    def parallel(self) -> bool:
        """Whether MLPs do not read what attention writes in the same block."""
        return Component.RESIDUAL_MID in self.unavailable

    def units(self, component: Component) -> int:
        """How many units a site of this component can name."""
        if component in (Component.KEY, Component.VALUE):
            return self.key_value_heads
        if component in HEADED or component in PAIRWISE:
            return self.heads
        if component is Component.NEURON:
            return self.neurons
        return self.vocabulary_size if component is Component.LOGITS else self.hidden_size

    def edges(self) -> int:
        """How many edges lead from heads, MLPs and the embedding to those that can read them, and to the logits."""
        written = self.heads + 1
        below = sum(1 + layer * written for layer in range(self.layers))
        into_block = (self.heads + 2 * self.key_value_heads + 1) * below
        within = 0 if self.parallel else self.heads * self.layers
        return into_block + within + 1 + self.layers * written

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
