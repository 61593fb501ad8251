"""What is asked. Every contender gets the same workload and gives the same array.

W1  the ROME grid: the target's probability, mean over 10 corrupted samples, with one residual state restored
W2  the target's log-probability with one neuron at the last position set to zero, for 256 neurons of each block
W3  the same with one attention head set to zero at all positions, for all heads
W4  the log-probabilities of the top ten tokens, before and after one neuron is scaled, at all positions or the last
W5  16 callers, each with its own prompt, neurons and head
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from tests.bench.shapes import Shape, prompt
from tests.support.hooks import modules_of

Answer: TypeAlias = npt.NDArray[np.float64]
SAMPLES = 10
SUBJECT = (3, 4, 5)
TARGET = 17
TOP = 10
FACTOR = 5.0
CALLERS = 16


@dataclass(frozen=True, slots=True)
class Grid:
    """W1: causal tracing of the residual stream, cell by cell."""

    tokens: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]
    """(position, block) of what is restored."""
    standard_deviation: float
    subject: tuple[int, ...] = SUBJECT
    target: int = TARGET
    samples: int = SAMPLES

    def __len__(self) -> int:
        return len(self.cells)

    def part(self, chosen: Sequence[int]) -> "Grid":
        """The same with these cells alone."""
        return replace(self, cells=tuple(self.cells[number] for number in chosen))

    @property
    def positions(self) -> list[int]:
        """Of the cells, each once."""
        return sorted({position for position, _ in self.cells})

    @property
    def layers(self) -> list[int]:
        """Of the cells, each once."""
        return sorted({layer for _, layer in self.cells})

    def noise(self, hidden_size: int) -> torch.Tensor:
        """[samples, subject, D]: ROME's own draw, RandomState(1)."""
        drawn = np.random.RandomState(1).randn(self.samples, len(self.subject), hidden_size)
        return torch.from_numpy((drawn * self.standard_deviation).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Neurons:
    """W2: one neuron at the last position set to zero."""

    tokens: tuple[int, ...]
    neurons: tuple[tuple[int, int], ...]
    """(block, neuron)."""
    target: int = TARGET

    def __len__(self) -> int:
        return len(self.neurons)

    def part(self, chosen: Sequence[int]) -> "Neurons":
        """The same with these neurons alone."""
        return replace(self, neurons=tuple(self.neurons[number] for number in chosen))


@dataclass(frozen=True, slots=True)
class Heads:
    """W3: one head set to zero at all positions."""

    tokens: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    """(block, head)."""
    target: int = TARGET

    def __len__(self) -> int:
        return len(self.heads)

    def part(self, chosen: Sequence[int]) -> "Heads":
        """The same with these heads alone."""
        return replace(self, heads=tuple(self.heads[number] for number in chosen))


@dataclass(frozen=True, slots=True)
class OneNeuron:
    """W4: one neuron scaled, the top ten tokens before and after."""

    tokens: tuple[int, ...]
    layer: int
    neuron: int
    again: bool
    """Whether the same prompt was asked before, with another neuron."""
    last: bool = False
    """Whether it is scaled at the last position alone; otherwise at all."""
    factor: float = FACTOR
    top: int = TOP

    def __len__(self) -> int:
        return 1

    @property
    def positions(self) -> tuple[int, ...]:
        """Where it is scaled."""
        length = len(self.tokens)
        return (length - 1,) if self.last else tuple(range(length))


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller of W5: neurons of one block at the last position, and one head at all positions, each set to zero."""

    tokens: tuple[int, ...]
    layer: int
    neurons: tuple[int, ...]
    head: int
    target: int = TARGET


@dataclass(frozen=True, slots=True)
class Callers:
    """W5: what they ask, at once or one after the other."""

    callers: tuple[Caller, ...]

    def __len__(self) -> int:
        return len(self.callers)


Workload: TypeAlias = Grid | Neurons | Heads | OneNeuron | Callers
NAMES = ("W1", "W2", "W3", "W4 first", "W4 again", "W4 last", "W5")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the workloads take from a model."""

    layers: int
    heads: int
    neurons: int
    vocabulary: int
    embedding_deviation: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Sizes":
        """Read off a plain model."""
        modules, gpt2 = modules_of(model), model.config.model_type == "gpt2"
        weight = modules.mlp_projection[0].weight
        assert isinstance(weight, torch.Tensor)
        return cls(
            len(modules.blocks),
            int(model.config.num_attention_heads),
            int(weight.shape[0 if gpt2 else 1]),
            int(model.config.vocab_size),
            float(modules.embedding.weight.double().std()),
        )


def make(name: str, shape: Shape, sizes: Sizes, length: int, number: int) -> Workload:
    """The workload of this name on the prompt of this number."""
    tokens = prompt(sizes.vocabulary, length, number)
    match name:
        case "W1":
            # Of a long prompt every 32nd position, whose suffixes are as long on average as the whole grid's.
            positions = range(length) if length <= 16 else range(15, length, 32)
            cells = tuple((position, layer) for position in positions for layer in range(sizes.layers))
            return Grid(tokens, cells, 3.0 * sizes.embedding_deviation)
        case "W2":
            units = range(0, sizes.neurons, max(1, sizes.neurons // 256))[:256]
            return Neurons(tokens, tuple((layer, unit) for layer in shape.edited_layers for unit in units))
        case "W3":
            heads = tuple((layer, head) for layer in range(sizes.layers) for head in range(sizes.heads))
            return Heads(tokens, heads)
        case "W4 first" | "W4 again" | "W4 last":
            again = name != "W4 first"
            return OneNeuron(tokens, shape.scaled_layer, 29 if again else 17, again, name == "W4 last")
        case "W5":
            return Callers(tuple(_caller(sizes, length, CALLERS * number + each) for each in range(CALLERS)))
    raise ValueError(f"{name!r} is none of {', '.join(NAMES)}")


def _caller(sizes: Sizes, length: int, number: int) -> Caller:
    drawn = np.random.RandomState(5000 + number)
    neurons = tuple(int(unit) for unit in drawn.choice(sizes.neurons, min(16, sizes.neurons), replace=False))
    layer, head = int(drawn.randint(sizes.layers)), int(drawn.randint(sizes.heads))
    return Caller(prompt(sizes.vocabulary, length, 100_000 + number), layer, neurons, head)


def axes(places: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The two axes of a full product of blocks and units."""
    layers = list(dict.fromkeys(layer for layer, _ in places))
    units = list(dict.fromkeys(unit for _, unit in places))
    assert list(places) == [(layer, unit) for layer in layers for unit in units]
    return layers, units


def cells(workload: Grid, values: npt.NDArray[np.float32]) -> Answer:
    """The workload's cells of a grid [positions, layers]."""
    rows = {position: number for number, position in enumerate(workload.positions)}
    columns = {layer: number for number, layer in enumerate(workload.layers)}
    return np.array([values[rows[position], columns[layer]] for position, layer in workload.cells], dtype=np.float64)
