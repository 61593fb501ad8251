"""Causal tracing (Meng et al. 2022): which states carry the prediction?"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from .answers import Answer, Floats
from .costs import DOUBLE, FLOAT, Cost, state_bytes
from .edits import Values
from .extents import Extent, Restarts, extent_of, rereading, token_layers
from .images import Sight
from .places import FACTS, LAYERLESS, PAIRWISE, Component, Place, Sized, Stage, layers_around
from .prompts import Asked, Prompt

# The defaults of the paper's published script.
DEFAULT_COMPONENTS = (Component.RESIDUAL_POST, Component.MLP_OUT, Component.ATTENTION_OUT)
DEFAULT_WINDOW = 10
DEFAULT_SAMPLES = 10
DEFAULT_DEVIATIONS = 3.0
DEFAULT_SEED = 1


@dataclass(frozen=True, slots=True)
class GaussianCorruption:
    """Standard normal noise times `standard_deviation`; where that is None, times `deviations` of the embedding's."""

    deviations: float = DEFAULT_DEVIATIONS
    standard_deviation: float | None = None
    samples: int = DEFAULT_SAMPLES
    seed: int = DEFAULT_SEED


@dataclass(frozen=True, slots=True, eq=False)
class ExplicitNoise:
    """Noise [samples, corrupted positions, D] that the caller sent."""

    values: Values

    @property
    def samples(self) -> int:
        """How many corrupted runs there are."""
        return int(self.values.shape[0])


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Another prompt of the same length, whose embeddings replace the prompt's where the two differ."""

    prompt: Prompt

    @property
    def samples(self) -> int:
        """How many corrupted runs there are."""
        return 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One state, or a window of layers around one, that is restored."""

    component: Component
    position: int
    layer: int
    restored: tuple[int, ...]

    @property
    def places(self) -> list[Place]:
        """What is restored, layer by layer."""
        return [Place(self.component, layer, (self.position,)) for layer in self.restored]


@dataclass(frozen=True, slots=True)
class CausalTracing:
    """Corrupt the subject, then restore one clean state at a time.

    `rows`: the positions of the grids by row of a reduction; None: each is a row.
    """

    corruption: GaussianCorruption | ExplicitNoise | Counterfactual
    replace: bool
    subject: tuple[int, ...]
    components: tuple[Component, ...]
    window: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    per_sample: bool
    rows: tuple[tuple[int, ...], ...] | None = None

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are restored."""
        return not PAIRWISE.isdisjoint(self.components)

    @property
    def reduced_rows(self) -> tuple[tuple[int, ...], ...]:
        """The positions of the grids by row of a reduction. A position may be in several rows."""
        return tuple((position,) for position in self.positions) if self.rows is None else self.rows

    @property
    def cell_count(self) -> int:
        """How many cells the grids have."""
        columns = sum(1 if component in LAYERLESS else len(self.layers) for component in self.components)
        return columns * len(self.positions)

    def cells(self, layers: int) -> Iterator[Cell]:
        """Every cell of the grids, component by component, position by position, in a model of `layers` layers."""
        for component in self.components:
            facts = FACTS[component]
            for position in self.positions:
                for layer in (0,) if facts.layerless else self.layers:
                    restored = layers_around(layer, self.window, layers) if facts.windowed else (layer,)
                    yield Cell(component, position, layer, restored)

    def matters(self, cell: Cell, read: int, sight: Sight) -> bool:
        """Whether a restoration can change what is read at `read`: not before the corruption, not after the reading."""
        match FACTS[cell.component].stage:
            case Stage.EMBEDDING:
                return cell.position in self.subject and cell.position <= sight.horizon(read)
            case Stage.END:
                return cell.position == read
        return sight.begins(min(self.subject)) <= cell.position <= sight.horizon(read)

    def restored(self, layers: int) -> list[Place]:
        """The clean run's values of every component and layer that is restored, at the positions of the grids."""
        column = replace(self, positions=self.positions[:1])
        places = sorted({(cell.component, layer) for cell in column.cells(layers) for layer in cell.restored})
        return [Place(component, layer, self.positions) for component, layer in places]

    def numbers_per_cell(self, targets: int) -> int:
        """Probability, deviation and logit for each target; and each sample's probability, where that is asked for."""
        return targets * (3 + (self.corruption.samples if self.per_sample else 0))

    def runs(self, _asked: Asked, _model: Sized) -> int:
        """Every sample corrupted, and then once for each cell."""
        return self.corruption.samples * (self.cell_count + 1)

    def answer_bytes(self, asked: Asked, _model: Sized) -> int:
        """The numbers of every cell."""
        return FLOAT * self.cell_count * self.numbers_per_cell(asked.columns)

    def restarts(self, asked: Asked, model: Sized) -> Restarts:
        """The run that reads what is restored, once; then, for each sample, the corrupted run and the cells.

        A cell that cannot change what is read is not run.
        """
        tokens, layers, samples, sight = asked.tokens, model.layers, self.corruption.samples, asked.sight
        found = Counter({Extent.whole(layers, tokens, sight.begins(min(self.subject))): samples})
        found[rereading(self.restored(layers), tokens, layers, sight)] += 1
        for cell in self.cells(layers):
            if self.matters(cell, asked.position, sight):
                ends = cell.restored[0], cell.restored[-1]
                found[_restoring(cell.component, ends, cell.position, asked.position, tokens, layers, sight)] += samples
        return found

    def cost(self, asked: Asked, model: Sized, restarts: Restarts) -> Cost:
        """The cost before anything runs."""
        unchanged, full = 1 + isinstance(self.corruption, Counterfactual), asked.tokens * model.layers
        runs, work = self.runs(asked, model), unchanged * full + token_layers(restarts)
        return Cost(runs, work, (runs + unchanged) * full, self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """The unchanged and the corrupted states, the noise as it is drawn and scaled, and what is restored."""
        samples = self.corruption.samples
        counterfactual = isinstance(self.corruption, Counterfactual)
        held = (1 + samples + counterfactual) * state_bytes(asked.tokens, model)
        drawn = 0 if counterfactual else samples * len(self.subject)
        held += 2 * DOUBLE * drawn * model.hidden_size
        for component in self.components:
            shape = model.selected_shape(component, None, len(self.positions), asked.tokens)
            held += FLOAT * model.layers * prod(shape)
        return held


@lru_cache(maxsize=1 << 16)
def _restoring(
    component: Component, ends: tuple[int, int], position: int, read: int, tokens: int, layers: int, sight: Sight
) -> Extent:
    """What a run computes that restores one position from the first to the last of a few layers.

    Kept, because many cases of a dataset are equally long.
    """
    places = [Place(component, layer, (position,)) for layer in ends]
    return extent_of(places, (), read, tokens, layers, sight=sight)


@dataclass(frozen=True, slots=True, eq=False)
class Corruption(Answer):
    """The corrupted runs with nothing restored, by target."""

    probabilities: Floats
    deviations: Floats
    logits: Floats
    positions: tuple[int, ...]
    noise_deviation: float
    sample_probabilities: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class RestorationGrid(Answer):
    """A part of one component's grid: [positions, layers, targets], samples last where asked for.

    `counts`: of a reduction, how many values each row is over.
    """

    component: Component
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    probabilities: Floats
    deviations: Floats
    logits: Floats
    sample_probabilities: Floats | None
    counts: tuple[int, ...] = ()
