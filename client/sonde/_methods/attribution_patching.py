"""Attribution patching: first-order estimates of what patching each place would do.

Nanda 2023; Kramar et al. 2024 (AtP*, arXiv 2403.00745); Syed et al. 2023 (edges, EAP, arXiv 2310.10348).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from sonde._answers.edges import Edges, no_edges
from sonde._answers.results import TraceResult
from sonde._arrays import (
    Axes,
    Floats,
    Label,
    common_array,
    data_frame,
    long_form,
    rank_correlation,
    strongest,
    visible,
)
from sonde._ask.given import flag, refusal
from sonde._ask.indices import index
from sonde._ask.names import COMPONENTS, METRICS, ComponentName, MetricName, check_name
from sonde._ask.prompts import PromptLike
from sonde._ask.sites import Site, component_names
from sonde._methods.method import Assembly, Kind, Method
from sonde._show import plotting, terminal
from sonde._show.display import heatmap, sortable_table
from sonde._show.palette import look, words
from sonde._wire.context import Context
from sonde._wire.encoding import encode_prompt
from sonde._wire.parts import NO_LAYER, Grid, known_component, layer_labels, missing
from sonde._wire.tensors import floats, integers
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LISTED: Final = 10
_PLACE: Final = ("component", "layer", "position", "token", "unit", "estimate")
_EDGE: Final = ("sender", "receiver", "estimate")


@dataclass(frozen=True, slots=True)
class VerifiedEffect:
    """An estimate beside the effect that really patching the place had."""

    site: Site
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

    def row(self) -> list[object]:
        """The place as a row of a table."""
        token = repr(visible(self.token))
        return [self.component, self.layer, self.position, token, self.unit, self.estimate]


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
        named = self.estimates.items()
        chosen: dict[ComponentName, Floats] = {n: e[..., target] for n, e in named if component in {None, n}}
        return [self._place(name, place, float(chosen[name][place])) for name, place in strongest(chosen, count)]

    def _place(self, name: ComponentName, place: tuple[int, ...], estimate: float) -> AttributedPlace:
        layers, positions, *units = list(self.axes[name].values())[: len(place)]
        layer, column, *unit = place
        position = int(positions[column] or 0)
        head = units[0][unit[0]] if unit else None
        return AttributedPlace(name, layers[layer], position, self.tokens[position].text, head, estimate)

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
        if not self.estimates and len(self.edges):
            some = self.edges[: plotting.MOST_ROWS]
            title = f"the {len(some)} largest of {len(self.edges):,} edges" if len(some) < len(self.edges) else "edges"
            return plotting.save(plotting.bars(title, [str(edge) for edge in some], some.estimates[:, target]), path)
        grids, high = self._summed(target)
        panels = [
            plotting.Panel(
                look(name).title, grid.T, self._row_labels(name), self.axes[name]["layer"], "RdBu", across="layer"
            )
            for name, grid in grids.items()
        ]
        return plotting.save(plotting.panels(panels, -high, high), path)

    def _summed(self, target: int) -> tuple[dict[ComponentName, Floats], float]:
        """The estimates summed over units, [layer, position] by component, and the largest size of any."""
        grids: dict[ComponentName, Floats] = {name: e[..., target] for name, e in self.estimates.items()}
        grids = {name: g.sum(axis=-1) if g.ndim > 2 else g for name, g in grids.items()}
        return grids, max((float(np.nanmax(np.abs(g), initial=1e-12)) for g in grids.values()), default=1.0)

    def _row_labels(self, name: ComponentName) -> tuple[str, ...]:
        return self.token_labels([int(p or 0) for p in self.axes[name]["position"]])

    def _pieces(self) -> list[str]:
        grids, high = self._summed(0)
        pieces = [self._strip("prompt")]
        for name, grid in grids.items():
            layers = ["-" if layer is None else str(layer) for layer in self.axes[name]["layer"]]
            title = f"{words(name)}: estimated effect"
            pieces.append(heatmap(title, self._row_labels(name), layers, grid.T, across="layer", high=high))
        if self.estimates:
            pieces.append(sortable_table("the largest estimates", _PLACE, self._rows(_MOST_LISTED)))
        if len(self.edges):
            pieces.append(sortable_table("the largest edges", _EDGE, self._edge_rows(_MOST_LISTED)))
        return pieces

    def _paragraphs(self, count: int) -> list[str]:
        parts = super()._paragraphs(count)
        if self.estimates:
            rows = [["-" if value is None else value for value in row] for row in self._rows(count)]
            table = terminal.table(_PLACE, rows)
            parts.append(f"the largest estimates, none of them a measurement\n{table}")
        if len(self.edges):
            table = terminal.table(_EDGE, self._edge_rows(count))
            parts.append(f"the largest edges, none of them a measurement\n{table}")
        if self.verified:
            rows = [[_named(one.site), float(one.estimated[0]), float(one.measured[0])] for one in self.verified]
            table = terminal.table(["place", "estimated", "measured"], rows)
            parts.append(f"really patched; rank correlation {self.rank_correlation():.2f}\n{table}")
        return parts

    def _rows(self, count: int) -> list[list[object]]:
        return [place.row() for place in self.strongest(count)]

    def _edge_rows(self, count: int) -> list[list[object]]:
        return [[str(edge.sender), str(edge.receiver), float(edge.estimates[0])] for edge in self.edges[:count]]

    def _summary(self) -> str:
        parts = [f"{name} {' x '.join(map(str, e.shape[:-1]))}" for name, e in self.estimates.items()]
        if len(self.edges):
            parts.append(f"{len(self.edges):,} edges")
        return "".join(f", {part}" for part in parts)


def _named(site: Site) -> str:
    parts = {"layer": site.layers, "unit": site.units, "position": site.positions}
    return " ".join([site.component, *(f"{name} {entries[0]}" for name, entries in parts.items() if entries)])


@dataclass(frozen=True, slots=True, eq=False)
class AttributionPatching(Method[AttributionPatchingResult]):
    """Estimate, to first order, what patching each place from `source` into the prompt would do to the metric.

    (source - prompt) . gradient in the prompt's run (Nanda 2023; Kramar et al. 2024, arXiv 2403.00745).
    """

    source: PromptLike
    """A prompt of as many tokens."""
    components: ComponentName | Iterable[ComponentName] | None = None
    integration_steps: int | None = None
    """Unset or 1: the plain gradient; more: averaged along the embeddings' straight line."""
    metric: MetricName | None = None
    """Unset: the logit."""
    verify_top: int = 0
    """Really patch this many of the largest estimates and report both numbers."""
    recompute_softmax: bool = False
    """At query and key: what patching really does to the pattern, times the pattern's gradient (AtP*)."""
    drop_layers: bool = False
    """Sizes averaged over gradients, in each of which one layer's writes have none (GradDrop of AtP*)."""
    edges: int | Literal["all"] | None = None
    """Also what one component writes and another reads: the so many largest of these, or all (EAP, EAP-IG)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", component_names(self.components))
        few = self.edges != "all" if isinstance(self.edges, str) else _few(self.edges)
        if few:
            raise refusal("edges", "a number from 1 on, or 'all'", self.edges)
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")


def _few(edges: int | None) -> bool:
    return edges is not None and index(edges, "edges") < 1


def _write(method: AttributionPatching, request: pb.TraceRequest) -> None:
    message = request.attribution_patching
    message.source.CopyFrom(encode_prompt(method.source))
    message.components.extend(COMPONENTS[name] for name in component_names(method.components))
    if method.integration_steps is not None:
        message.integration_steps = index(method.integration_steps, "integration_steps")
    message.verify_top = index(method.verify_top, "verify_top")
    message.recompute_softmax = flag(method.recompute_softmax, "recompute_softmax")
    message.drop_layers = flag(method.drop_layers, "drop_layers")
    if method.edges is not None:
        message.edges.top = 0 if method.edges == "all" else index(method.edges, "edges")
        message.edges.SetInParent()
    if method.metric is not None:
        message.metric = METRICS[method.metric]


class _Assembly(Assembly[AttributionPatchingResult]):
    def __init__(self, _: AttributionPatching, request: pb.TraceRequest) -> None:
        self._asked = request.attribution_patching
        self._grids: dict[ComponentName, Grid] = {}
        self._edges: list[pb.EdgeAttributions] = []
        self._verified: list[VerifiedEffect] = []

    def take(self, context: Context, message: pb.TraceResponse) -> None:  # noqa: ARG002 - its parts name their positions
        for part in message.attributions:
            name = known_component(part.component)
            grid = self._grids.setdefault(name, Grid(f"{name} estimates", [None, None]))
            grid.add([list(part.layers) or [NO_LAYER], list(part.positions)], part.estimates)
        self._edges.extend(message.edges)
        self._verified.extend(map(_verified, message.verified))

    @property
    def ready(self) -> bool:
        return bool(self._grids or self._edges)

    def check(self, context: Context) -> None:  # noqa: ARG002
        if {known_component(component) for component in self._asked.components} - self._grids.keys():
            raise missing("some components' estimates did not come")
        if self._asked.HasField("edges") and not self._edges:
            raise missing("the edges did not come")
        for name, grid in self._grids.items():
            if not grid.join()[2].all():
                raise missing(f"some estimates of {name} did not come")

    def build(self, context: Context) -> AttributionPatchingResult:
        axes: dict[ComponentName, Axes] = {}
        estimates: dict[ComponentName, Floats] = {}
        targets = tuple(target.text for target in context.targets)
        for name, grid in self._grids.items():
            (layers, positions), values, _ = grid.join()
            units = {"unit": tuple(range(values.shape[2]))} if values.ndim == 4 else {}
            axes[name] = {"layer": layer_labels(layers), "position": positions, **units, "target": targets}
            estimates[name] = values.astype(np.float32, copy=False)
        return AttributionPatchingResult(
            **context.common(),
            axes=axes,
            estimates=estimates,
            edges=self._joined_edges(len(targets)),
            verified=tuple(self._verified),
            sizes=self._asked.drop_layers,
        )

    def _joined_edges(self, targets: int) -> Edges:
        if not self._edges:
            return no_edges(targets)
        parts = sorted(self._edges, key=lambda part: part.offset)
        estimates = [floats(part.estimates) for part in parts]
        ends = [[integers(getattr(part, name)) for part in parts] for name in ("senders", "receivers")]
        following = 0
        for part, values, *rows in zip(parts, estimates, *ends, strict=True):
            fits = values.shape == (len(values), targets) and all(one.shape == (len(values), 3) for one in rows)
            if part.offset != following or not fits:
                raise ProtocolError(f"the answer has edges that do not follow upon each other, at {part.offset}")
            following += len(values)
        return Edges(np.concatenate(ends[0]), np.concatenate(ends[1]), np.concatenate(estimates))


def _verified(message: pb.VerifiedEffect) -> VerifiedEffect:
    site = message.site
    place = Site(known_component(site.component), tuple(site.layers), tuple(site.units), tuple(site.positions))
    return VerifiedEffect(place, np.array(message.estimated, np.float32), np.array(message.measured, np.float32))


KIND: Final = Kind(_write, _Assembly, (AttributionPatchingResult, VerifiedEffect, Edges))
