"""Places in a model: components, sites, and the sizes that shapes follow from.

`FACTS` is the one table of components. To add a component, number it as the contract does, give it a row here, visit it
in the engine, and give it an identity in the engine's check of the loaded model.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from .images import ImageInput


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


class Stage(enum.IntEnum):
    """Where a pass computes a component, in the order of the pass."""

    EMBEDDING = 0
    """Below all blocks."""
    ENTERING = 1
    """The stream that a block reads."""
    KEYS = 2
    """What later positions read of a position: keys and values."""
    ATTENTION = 3
    """Queries, and what they make of the keys."""
    AFTER_ATTENTION = 4
    """From the mixes of values to the stream that the MLP reads."""
    MLP = 5
    """Inside the MLP, and what it adds."""
    LEAVING = 6
    """The stream that a block leaves."""
    END = 7
    """Above all blocks."""


class Unit(enum.Enum):
    """What the units of a component are."""

    HIDDEN = enum.auto()
    HEAD = enum.auto()
    KEY_VALUE_HEAD = enum.auto()
    NEURON = enum.auto()
    VOCABULARY = enum.auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of a component in every model."""

    stage: Stage
    unit: Unit = Unit.HIDDEN
    pairwise: bool = False
    """Whether each unit has a number for every pair of positions: [units, positions, tokens]."""
    kept: bool = False
    """Whether an unchanged run keeps it, so that reading it runs nothing."""
    edge_end: bool = False
    """Whether it is a sender or a receiver of edges within a block."""
    windowed: bool = False
    """Whether causal tracing restores it in a window of layers around a cell's."""

    @property
    def layerless(self) -> bool:
        """Whether there is one in the model, rather than one in each block."""
        return self.stage in (Stage.EMBEDDING, Stage.END)

    @property
    def in_block(self) -> bool:
        """Whether it lies inside a block. The stream before and after a block is there without running the block."""
        return Stage.ENTERING < self.stage < Stage.LEAVING

    @property
    def headed(self) -> bool:
        """Whether each unit is a vector of the size of a head: [positions, units, head size]."""
        return self.unit in (Unit.HEAD, Unit.KEY_VALUE_HEAD) and not self.pairwise

    @property
    def swept(self) -> bool:
        """Whether a sweep that names no units has one run for each; the units of others are edited as one."""
        return self.unit in (Unit.HEAD, Unit.KEY_VALUE_HEAD, Unit.NEURON)


# In the order in which a pass computes them.
FACTS: Mapping[Component, Facts] = {
    Component.TOKEN_EMBEDDING: Facts(Stage.EMBEDDING, kept=True),
    Component.RESIDUAL_PRE: Facts(Stage.ENTERING, kept=True),
    Component.KEY: Facts(Stage.KEYS, Unit.KEY_VALUE_HEAD, kept=True, edge_end=True),
    Component.VALUE: Facts(Stage.KEYS, Unit.KEY_VALUE_HEAD, kept=True, edge_end=True),
    Component.QUERY: Facts(Stage.ATTENTION, Unit.HEAD, edge_end=True),
    Component.ATTENTION_SCORES: Facts(Stage.ATTENTION, Unit.HEAD, pairwise=True),
    Component.ATTENTION_PATTERN: Facts(Stage.ATTENTION, Unit.HEAD, pairwise=True),
    Component.HEAD_OUT: Facts(Stage.AFTER_ATTENTION, Unit.HEAD, edge_end=True),
    Component.ATTENTION_OUT: Facts(Stage.AFTER_ATTENTION, windowed=True),
    Component.RESIDUAL_MID: Facts(Stage.AFTER_ATTENTION),
    Component.NEURON: Facts(Stage.MLP, Unit.NEURON),
    Component.MLP_OUT: Facts(Stage.MLP, edge_end=True, windowed=True),
    Component.RESIDUAL_POST: Facts(Stage.LEAVING, kept=True),
    Component.FINAL_NORM: Facts(Stage.END),
    Component.LOGITS: Facts(Stage.END, Unit.VOCABULARY),
}

LAYERLESS = frozenset(component for component, facts in FACTS.items() if facts.layerless)
IN_BLOCK = frozenset(component for component, facts in FACTS.items() if facts.in_block)
HEADED = frozenset(component for component, facts in FACTS.items() if facts.headed)
PAIRWISE = frozenset(component for component, facts in FACTS.items() if facts.pairwise)
UNIT_SWEPT = frozenset(component for component, facts in FACTS.items() if facts.swept)
KEPT = frozenset(component for component, facts in FACTS.items() if facts.kept)
EDGE_ENDS = frozenset(component for component, facts in FACTS.items() if facts.edge_end)
END = frozenset(component for component, facts in FACTS.items() if facts.stage is Stage.END)
# In the order of the block.
AFTER_ATTENTION = tuple(
    component for component, facts in FACTS.items() if facts.stage in (Stage.AFTER_ATTENTION, Stage.MLP)
)


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
    data_type: str
    unavailable: Mapping[Component, str]

    @property
    def device_type(self) -> str:
        """The kind of device that it is on, such as "cuda"."""
        raise NotImplementedError

    @property
    def parallel(self) -> bool:
        """Whether MLPs do not read what attention writes in the same block."""
        return Component.RESIDUAL_MID in self.unavailable

    def units(self, component: Component) -> int:
        """How many units a site of this component can name."""
        match FACTS[component].unit:
            case Unit.HIDDEN:
                return self.hidden_size
            case Unit.HEAD:
                return self.heads
            case Unit.KEY_VALUE_HEAD:
                return self.key_value_heads
            case Unit.NEURON:
                return self.neurons
            case Unit.VOCABULARY:
                return self.vocabulary_size

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
        if FACTS[component].pairwise:
            return (count, positions, tokens)
        if FACTS[component].headed:
            return (positions, count, self.head_size)
        return (positions, count)

    def numbers(self, site: "Site", tokens: int) -> int:
        """How many numbers a site has in a prompt of `tokens`, over all its layers."""
        positions = len(site.positions_within(tokens))
        return len(site.layers) * prod(self.selected_shape(site.component, site.units, positions, tokens))


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
    chat_template: bool = False
    image: ImageInput | None = None

    @property
    def device_type(self) -> str:
        """The kind of device that it is on, such as "cuda"."""
        return self.device.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Place:
    """One component of one layer at some positions; the layer is 0 for a component that takes none."""

    component: Component
    layer: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Values of a component. `layers` is (0,) for a component that takes none.

    `units` None: all. `positions` None: all, or where `from_position` is given, those from there on. `rows`: the
    positions by row, where the request names them; otherwise each of `positions` is a row, or all positions are one.
    """

    component: Component
    layers: tuple[int, ...]
    units: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    from_position: int | None = None
    rows: tuple[tuple[int, ...], ...] | None = None

    def positions_within(self, tokens: int) -> tuple[int, ...]:
        """The positions meant in a prompt of `tokens` tokens."""
        if self.from_position is not None:
            return tuple(range(self.from_position, tokens))
        return tuple(range(tokens)) if self.positions is None else self.positions

    def row_sizes(self, tokens: int) -> tuple[int, ...]:
        """How many of the positions belong to each row, in their order."""
        if self.rows is not None:
            return tuple(map(len, self.rows))
        return (len(self.positions_within(tokens)),) if self.positions is None else (1,) * len(self.positions)

    def places(self, tokens: int) -> Iterator[Place]:
        """The site in a prompt of `tokens` tokens, layer by layer."""
        positions = self.positions_within(tokens)
        return (Place(self.component, layer, positions) for layer in self.layers)


def layers_around(layer: int, width: int, layers: int) -> tuple[int, ...]:
    """The `width` layers around `layer`, fewer at the ends of a model of `layers` layers."""
    return tuple(range(max(0, layer - width // 2), min(layers, layer + (width + 1) // 2)))
