"""What a trace gives, by its method."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.edges import Edges
from sonde._answers.predictions import TokenPrediction
from sonde._answers.results import Result
from sonde._arrays import (
    Axes,
    Booleans,
    Floats,
    Integers,
    Label,
    common_array,
    data_frame,
    largest,
    long_form,
    rank_correlation,
    visible,
)
from sonde._ask.names import ComponentName

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from sonde._ask.sites import Site


@dataclass(frozen=True, eq=False, repr=False)
class TraceResult(Result):
    """The prediction alone, and the base of what the methods give."""

    def top(self, count: int = 5) -> list[TokenPrediction]:
        """The most probable tokens."""
        return self.prediction.top(count)

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._clean is None:
            return f"{name}(dry run: {self.cost.runs} runs)"
        return f"{name}({self._clean!r}{self._summary()})"

    def _summary(self) -> str:
        return ""


@dataclass(frozen=True, eq=False, repr=False)
class TokenProbabilityResult(TraceResult):
    """The target through the layers. Depth 0 is the residual stream before block 0, depth k after k blocks."""

    depths: tuple[int, ...]
    log_probabilities: Floats
    """[depth, target]: read by the final norm and the unembedding (logit lens)."""
    logits: Floats
    """[depth, target]; a difference where the target has a contrast."""
    ranks: Integers
    """[depth, target]; 0 is the top."""
    kl_divergences: Floats
    """[depth]: KL(final || this depth), in nats."""
    gradient_norms: Floats | None
    """[depth, position, target]: L2 norm of the metric's gradient; None if it was not asked for."""
    top_token_ids: Integers
    """[depth, k]"""
    top_log_probabilities: Floats
    """[depth, k]"""
    gradient_positions: tuple[int, ...]
    """What the gradient norms' positions stand for."""
    _texts: Mapping[int, str]

    @property
    def axes(self) -> Axes:
        """The axes of `log_probabilities` with their labels."""
        return {"depth": self.depths, "target": tuple(token.text for token in self.targets)}

    @property
    def probability(self) -> float:
        """The first target's final probability."""
        return float(self.prediction.probabilities[0])

    @property
    def probabilities(self) -> Floats:
        """As `log_probabilities`: [depth, target]."""
        return np.exp(self.log_probabilities)

    def __iter__(self) -> Iterator[tuple[float, Floats | None]]:
        """Per block, of the first target: (probability after it, gradient norms by position).

        The norms are None if they were not asked for.
        """
        for index, depth in enumerate(self.depths):
            if depth > 0:
                norms = None if self.gradient_norms is None else self.gradient_norms[index, :, 0]
                yield float(self.probabilities[index, 0]), norms

    def top_at(self, depth: int, count: int = 5) -> list[TokenPrediction]:
        """The most probable tokens as read at a depth."""
        row = self.depths.index(depth)
        pairs = zip(self.top_token_ids[row, :count], self.top_log_probabilities[row, :count], strict=True)
        return [TokenPrediction(int(i), self._texts.get(int(i), f"<{i}>"), float(v)) for i, v in pairs]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `log_probabilities`, which `np.asarray(result)` gives."""
        return self.axes, self.log_probabilities

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per depth and target (needs pandas)."""
        columns: dict[str, npt.NDArray[np.generic]] = {
            "log_probability": self.log_probabilities,
            "probability": self.probabilities,
            "logit": self.logits,
            "rank": self.ranks,
        }
        return data_frame(long_form(self.axes, columns))

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw the probability by depth, with the gradient norms if there are any (needs matplotlib)."""
        from sonde._show import plotting

        return plotting.save(plotting.lens(self, target=target), path)

    def rows(self, target: int = 0) -> list[list[object]]:
        """Depth, probability, rank and the top token, for a table."""
        table: list[list[object]] = []
        for index, depth in enumerate(self.depths):
            top = self.top_at(depth, 1) if self.top_token_ids.shape[1:] > (0,) else []
            probability, rank = float(self.probabilities[index, target]), int(self.ranks[index, target])
            table.append([depth, probability, rank, repr(visible(top[0].text)) if top else ""])
        return table


@dataclass(frozen=True, slots=True)
class RestoredCell:
    """A restored state, and what restoring it did to a target."""

    component: ComponentName
    layer: Label
    position: int
    token: str
    probability: float
    effect: float
    """Probability less that of the corrupted runs."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalTracingResult(TraceResult):
    """ROME's grid: what the target's probability comes to when one clean state is put back into corrupted runs.

    Each mapping is by component, such as `restored["residual_post"]`; its arrays are [position, layer, target], and
    `axes[component]` says what the entries stand for. A component that takes no layer has a layer axis of 1.
    """

    axes: Mapping[ComponentName, Axes]
    corrupted: Floats
    """[target]: mean probability over samples, nothing restored."""
    corrupted_deviations: Floats
    """[target]: standard deviation over samples."""
    corrupted_logits: Floats
    """[target]: mean over samples."""
    corrupted_positions: tuple[int, ...]
    """Where the prompt was corrupted."""
    corrupted_samples: Floats | None
    """[target, sample]: every sample's probability, if asked for."""
    noise_deviation: float
    """Standard deviation of the noise; 0 where none was drawn."""
    restored: Mapping[ComponentName, Floats]
    """Probability, the mean over samples."""
    deviations: Mapping[ComponentName, Floats]
    """Standard deviation of the probability over samples."""
    logits: Mapping[ComponentName, Floats]
    """Mean over samples; a difference where the target has a contrast."""
    samples: Mapping[ComponentName, Floats]
    """[position, layer, target, sample]: every sample's probability; empty unless asked for."""
    window: int
    """Layers restored together for mlp_out and attention_out."""
    arrived: Mapping[ComponentName, Booleans]
    """[position, layer]: False where a partial result is still NaN."""

    @property
    def clean(self) -> Floats:
        """[target]: probability in the unchanged run."""
        return self.prediction.probabilities

    @property
    def effect(self) -> Mapping[ComponentName, Floats]:
        """The indirect effect: restored less corrupted."""
        return {name: values - self.corrupted for name, values in self.restored.items()}

    def strongest(
        self, count: int = 5, *, component: ComponentName | None = None, target: int = 0
    ) -> list[RestoredCell]:
        """The cells whose restoration moved the target most, the largest effect first, up or down."""
        cells: list[RestoredCell] = []
        chosen: Iterable[ComponentName] = [component] if component else self.restored
        for name in chosen:
            effect = self.effect[name][..., target]
            positions, layers = self.axes[name]["position"], self.axes[name]["layer"]
            for row, column in largest(effect, count):
                position = int(positions[row] or 0)
                cells.append(
                    RestoredCell(
                        name,
                        layers[column],
                        position,
                        self.tokens[position].text,
                        float(self.restored[name][row, column, target]),
                        float(effect[row, column]),
                    )
                )
        return sorted(cells, key=lambda cell: -abs(cell.effect))[:count]

    def row_labels(self, component: ComponentName) -> list[str]:
        """A grid's rows: its tokens, the corrupted ones starred."""
        positions = [int(p or 0) for p in self.axes[component]["position"]]
        stars = ["*" if p in self.corrupted_positions else "" for p in positions]
        return [text + star for text, star in zip(self.token_labels(positions), stars, strict=True)]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The restored probabilities; after an axis of components if there are several."""
        return common_array(self.restored, self.axes, "restored")

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component, position, layer and target (needs pandas)."""
        table: dict[str, list[object]] = {}
        for name, restored in self.restored.items():
            columns: dict[str, npt.NDArray[np.generic]] = {
                "probability": restored,
                "deviation": self.deviations[name],
                "effect": self.effect[name],
                "logit": self.logits[name],
            }
            part = long_form(self.axes[name], columns)
            part["component"] = [name] * restored.size
            part["token"] = [self.tokens[p].text for p in part["position"]]
            for column in ("component", "position", "token", "layer", "target", *columns):
                table.setdefault(column, []).extend(part[column])
        return data_frame(table)

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw ROME's heat maps, one panel per component, and save them if a path is given (needs matplotlib)."""
        from sonde._show import plotting

        return plotting.save(plotting.causal_tracing(self, target=target), path)

    def _summary(self) -> str:
        grids = (f"{name} {' x '.join(map(str, values.shape[:2]))}" for name, values in self.restored.items())
        return f", corrupted {float(self.corrupted[0]):.4g}, {', '.join(grids)}"


@dataclass(frozen=True, slots=True)
class VerifiedEffect:
    """An estimate beside the effect that really patching the place had."""

    site: "Site"
    estimated: Floats
    """[target]"""
    measured: Floats
    """[target]"""


@dataclass(frozen=True, slots=True)
class AttributedPlace:
    """A place, and what patching it is estimated to do to a target's metric."""

    component: ComponentName
    layer: Label
    position: int
    token: str
    unit: Label
    """A head or neuron; None where the component has none."""
    estimate: float


@dataclass(frozen=True, eq=False, repr=False)
class AttributionPatchingResult(TraceResult):
    """First-order estimates by component: [layer, position, target], or [layer, position, unit, target].

    `axes[component]` says what the entries stand for. A component that takes no layer has a layer axis of 1.
    """

    axes: Mapping[ComponentName, Axes]
    estimates: Mapping[ComponentName, Floats]
    edges: Edges
    """What one component writes and another reads, the largest first; empty unless asked for."""
    verified: tuple[VerifiedEffect, ...]
    """The places that were really patched, if asked for."""
    sizes: bool = False
    """Whether estimates are sizes without a sign, as `drop_layers` makes them."""

    def strongest(
        self, count: int = 5, *, component: ComponentName | None = None, target: int = 0
    ) -> list[AttributedPlace]:
        """The places of the largest estimates, up or down."""
        places: list[AttributedPlace] = []
        chosen: Iterable[ComponentName] = [component] if component else self.estimates
        for name in chosen:
            estimates, (layers, positions, *units) = self.estimates[name][..., target], list(self.axes[name].values())
            for layer, column, *unit in largest(estimates, count):
                position = int(positions[column] or 0)
                of = units[0][unit[0]] if unit else None
                value = float(estimates[(layer, column, *unit)])
                places.append(AttributedPlace(name, layers[layer], position, self.tokens[position].text, of, value))
        return sorted(places, key=lambda place: -abs(place.estimate))[:count]

    def rank_correlation(self, target: int = 0) -> float:
        """Spearman's, of the estimates that were verified with what was measured, or with its size.

        NaN where fewer than two values were verified.
        """
        estimated = [float(one.estimated[target]) for one in self.verified]
        measured = [float(one.measured[target]) for one in self.verified]
        return rank_correlation(estimated, [abs(value) for value in measured] if self.sizes else measured)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The estimates, after an axis of components if there are several."""
        return common_array(self.estimates, self.axes, "estimates")

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component, place and target (needs pandas); `edges` have their own."""
        table: dict[str, list[object]] = {}
        names = ("component", "layer", "position", "unit", "target", "estimate")
        for name, estimates in self.estimates.items():
            part = long_form(self.axes[name], {"estimate": estimates})
            part["component"] = [name] * estimates.size
            part.setdefault("unit", [None] * estimates.size)
            for column in names:
                table.setdefault(column, []).extend(part[column])
        return data_frame(table)

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw the estimates, one panel per component, summed over units; of edges alone, the largest.

        Needs matplotlib.
        """
        from sonde._show import plotting

        return plotting.save(plotting.attributions(self, target=target), path)

    def _summary(self) -> str:
        parts = [f"{name} {' x '.join(map(str, e.shape[:-1]))}" for name, e in self.estimates.items()]
        if len(self.edges):
            parts.append(f"{len(self.edges):,} edges")
        return "".join(f", {part}" for part in parts)


@dataclass(frozen=True, eq=False, repr=False)
class ActivationsResult(TraceResult):
    """Activations of the unchanged run, by the index of their site or by its component."""

    activations: Captured

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The activations, if one site was read; after an axis of components if there are several alike."""
        found = self.activations
        names = [f"{index} {found.component(index)}" for index in found]
        arrays = dict(zip(names, found.values(), strict=True))
        return common_array(arrays, {name: found.axes(index) for index, name in enumerate(names)}, "activations")

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per entry of every site (needs pandas); an axis that a site does not have is None there."""
        return self.activations.to_dataframe()

    def _summary(self) -> str:
        return f", {self.activations!r}"
