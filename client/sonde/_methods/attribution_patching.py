"""Attribution patching: first-order estimates of the effect of patching each place.

Nanda 2023; Kramar et al. 2024 (AtP*, arXiv 2403.00745); Syed et al. 2023 (EAP, edges, arXiv 2310.10348).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from sonde._answers.edges import Edges, Nodes, no_edges
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
from sonde._ask.named import NamedPositions, Positions
from sonde._ask.named import positions as positions_of
from sonde._ask.names import (
    COMPONENTS,
    INTEGRATIONS,
    METRICS,
    ComponentName,
    IntegrationName,
    MetricName,
    check_name,
)
from sonde._ask.prompts import PromptLike
from sonde._ask.sites import Site, component_names
from sonde._methods.method import Assembly, Kind, Method, register, row_names
from sonde._show import plotting, terminal
from sonde._show.display import heatmap, sortable_table
from sonde._show.palette import look
from sonde._wire.context import Context
from sonde._wire.encoding import decode_named, encode_prompt, write_positions
from sonde._wire.parts import NO_LAYER, Grid, known_component, layer_labels, missing
from sonde._wire.tensors import floats, integers
from sonde.errors import InvalidRequest, ProtocolError
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LISTED: Final = 10
_PLACE: Final = ("component", "layer", "position", "token", "unit", "estimate")
_EDGE: Final = ("sender", "receiver", "estimate")
_MEAN_ROW: Final = "all positions"
"""The row of a reduction that is the mean of all positions."""


@dataclass(frozen=True, slots=True)
class VerifiedEffect:
    """An estimate, and the measured effect of patching the place."""

    site: Site
    estimated: Floats
    """[target]"""
    measured: Floats
    """[target]"""


@dataclass(frozen=True, slots=True)
class AttributedPlace:
    """A place, and the estimated effect of patching it on the metric of a target."""

    component: ComponentName
    layer: Label
    position: Label
    """By number, or by name if the request names positions."""
    token: str
    unit: Label
    """A head or neuron; None if the component has neither."""
    estimate: float

    def row(self) -> list[object]:
        """The place as a row of a table."""
        token = repr(visible(self.token))
        return [self.component, self.layer, self.position, token, self.unit, self.estimate]


@dataclass(frozen=True, eq=False, repr=False)
class AttributionPatchingResult(TraceResult):
    """First-order estimates by component: [layer, position, target], or [layer, position, unit, target].

    `axes[component]` has the labels. Components without layers have a layer axis of length 1.
    """

    axes: Mapping[ComponentName, Axes]
    estimates: Mapping[ComponentName, Floats]
    edges: Edges
    """Estimates for the edges between components, the largest first; empty unless requested."""
    verified: tuple[VerifiedEffect, ...]
    """The places whose effect was also measured, if requested."""
    sizes: bool = False
    """Whether the estimates are magnitudes without a sign, as with `drop_layers`."""

    def strongest(
        self, count: int = 5, *, component: ComponentName | None = None, target: int = 0
    ) -> list[AttributedPlace]:
        """The places with the largest estimates, in either direction, the largest first."""
        if component is not None:
            check_name(component, self.estimates, "component")
        named = self.estimates.items()
        chosen: dict[ComponentName, Floats] = {n: e[..., target] for n, e in named if component in {None, n}}
        return [self._place(name, place, float(chosen[name][place])) for name, place in strongest(chosen, count)]

    def _place(self, name: ComponentName, place: tuple[int, ...], estimate: float) -> AttributedPlace:
        layers, positions, *units = list(self.axes[name].values())[: len(place)]
        layer, column, *unit = place
        position = positions[column]
        head = units[0][unit[0]] if unit else None
        return AttributedPlace(name, layers[layer], position, self._text_at(position), head, estimate)

    def _text_at(self, position: Label) -> str:
        """The token at a position; what is named is its own text."""
        return self.tokens[position].text if isinstance(position, int) else str(position)

    def rank_correlation(self, target: int = 0) -> float:
        """Spearman's rank correlation between the verified estimates and the measured effects.

        If the estimates are magnitudes, the magnitudes of the effects are used. NaN for fewer than two values.
        """
        estimated = [float(one.estimated[target]) for one in self.verified]
        measured = [float(one.measured[target]) for one in self.verified]
        return rank_correlation(estimated, [abs(value) for value in measured] if self.sizes else measured)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The estimates; of several components, stacked along a first axis `component`."""
        return common_array(self.estimates, self.axes, "estimates")

    def nodes(self, *, target: int = 0) -> Nodes:
        """Heads, MLPs and the embedding, by the sum of their estimates over positions, the largest first.

        They are what `sonde.circuits` takes for circuits of nodes.

        Raises:
            ValueError: if none of "head_out", "mlp_out" and "token_embedding" was estimated, or if these are means over
                the positions of several cases; ask with `positions="all"`, which sums them up.
        """
        if any(axes["position"] == (_MEAN_ROW,) for axes in self.axes.values()):
            raise ValueError(
                'expected estimates of all positions together, with positions="all", got means of positions'
            )
        rows: list[tuple[int, int, int]] = []
        sums: list[Floats] = []
        for name in ("token_embedding", "head_out", "mlp_out"):
            if name in self.estimates:
                summed = self.estimates[name][..., target].sum(axis=1).reshape(len(self.estimates[name]), -1)
                rows += [(COMPONENTS[name], layer, head) for layer, head in np.ndindex(summed.shape)]
                sums.append(summed.reshape(-1))
        if not rows:
            raise ValueError("expected estimates of head_out, mlp_out or token_embedding, which are nodes, got none")
        values = np.concatenate(sums)
        order = np.argsort(-np.abs(values), kind="stable")
        return Nodes(np.array(rows, np.int64)[order], values[order])

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component, place and target (needs pandas); `edges` has a data frame of its own."""
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
        """Draw the estimates, one panel per component, and save the figure if a path is given (needs matplotlib).

        Estimates are summed over units. If there are only edges, the largest ones are drawn as bars.
        """
        if not self.estimates and len(self.edges):
            some = self.edges[: plotting.MOST_ROWS]
            title = self._titled(f"Estimated effect of patching each edge on {self._quoted(target)}")
            if len(some) < len(self.edges):
                title += f"\n(the {len(some)} largest of {len(self.edges):,})"
            return plotting.save(plotting.bars(title, [str(edge) for edge in some], some.estimates[:, target]), path)
        grids, high = self._summed(target)
        panels = [
            plotting.Panel(
                look(name).title, grid.T, self._row_labels(name), self.axes[name]["layer"], "RdBu", across="layer"
            )
            for name, grid in grids.items()
        ]
        title = self._titled(f"Estimated effect of patching each place on {self._quoted(target)}")
        legend = "magnitude" if self.sizes else "estimate"
        return plotting.save(plotting.panels(panels, -high, high, title=title, legend=legend), path)

    def _summed(self, target: int) -> tuple[dict[ComponentName, Floats], float]:
        """The estimates summed over units, [layer, position] by component, and their largest magnitude."""
        grids: dict[ComponentName, Floats] = {name: e[..., target] for name, e in self.estimates.items()}
        grids = {name: g.sum(axis=-1) if g.ndim > 2 else g for name, g in grids.items()}
        return grids, max((float(np.nanmax(np.abs(g), initial=1e-12)) for g in grids.values()), default=1.0)

    def _row_labels(self, name: ComponentName) -> tuple[str, ...]:
        return tuple(visible(self._text_at(position)) for position in self.axes[name]["position"])

    def _pieces(self) -> list[str]:
        grids, high = self._summed(0)
        pieces = [self._strip("prompt")]
        for name, grid in grids.items():
            layers = ["-" if layer is None else str(layer) for layer in self.axes[name]["layer"]]
            title = f"{look(name).title}: estimated effect"
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
            parts.append(f"the largest estimates (not measurements)\n{table}")
        if len(self.edges):
            table = terminal.table(_EDGE, self._edge_rows(count))
            parts.append(f"the largest edges (estimates, not measurements)\n{table}")
        if self.verified:
            rows = [[_named(one.site), float(one.estimated[0]), float(one.measured[0])] for one in self.verified]
            table = terminal.table(["place", "estimated", "measured"], rows)
            parts.append(f"measured by patching; rank correlation {self.rank_correlation():.2f}\n{table}")
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
    """Estimate, to first order, how patching each place from `source` into the prompt would change the metric.

    (source - prompt) . gradient in the prompt's run (Nanda 2023; Kramar et al. 2024, arXiv 2403.00745). To rank heads
    and MLPs, name all positions with `positions="all"`.

    Args:
        source: the prompt to patch from, with the same number of tokens; None means each case's own source.
        components: the components whose places are estimated; the default is none, which needs `edges`.
        integration_steps: the number of gradients, averaged along the straight line between the two embeddings; the
            default is 1.
        metric: the quantity that is differentiated; the default is `"logit"`.
        verify_top: also measure the effect of patching this many of the places with the largest estimates; the default
            is 0.
        recompute_softmax: at query and key, use the exact change of the attention pattern, times the pattern's gradient
            (AtP*); the default is False.
        drop_layers: average the magnitudes over gradients that each ignore what one layer writes (GradDrop of AtP*);
            the default is False.
        edges: also estimate the edges between components (EAP, EAP-IG): this many of the largest, or `"all"`; the
            default is none.
        integration: the runs in which the gradients are taken. `"activations"` averages them along the line between
            each sender's own two values, `integration_steps` of them, at least 2; it needs `edges`, and no components
            (EAP-IG activations, Hanna et al. 2024, arXiv 2403.17806). `"ends"` averages those of the prompt's run and
            the source's (clean-corrupted). The default is the line between the two embeddings.
        positions: positions by name, each of which is then one place (the sum of its positions); the default is every
            position.

    Raises:
        InvalidRequest: if a component, the metric or `integration` is not known, or `edges` is less than 1.
    """

    source: PromptLike | None = None
    components: ComponentName | Iterable[ComponentName] | None = None
    integration_steps: int | None = None
    metric: MetricName | None = None
    verify_top: int = 0
    recompute_softmax: bool = False
    drop_layers: bool = False
    edges: int | Literal["all"] | None = None
    positions: str | NamedPositions | Iterable[str | NamedPositions] | None = None
    integration: IntegrationName | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", component_names(self.components))
        places = positions_of(self.positions, "positions")
        if places and not isinstance(places[0], NamedPositions):
            raise refusal("positions", "the names of positions", self.positions)
        object.__setattr__(self, "positions", places)
        few = self.edges != "all" if isinstance(self.edges, str) else _few(self.edges)
        if few:
            raise refusal("edges", "a number of at least 1, or 'all'", self.edges)
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")
        if self.integration is not None:
            check_name(self.integration, INTEGRATIONS, "integration")


def _few(edges: int | None) -> bool:
    return edges is not None and index(edges, "edges") < 1


def _write(method: AttributionPatching, request: pb.TraceRequest) -> None:
    message = request.attribution_patching
    if method.source is not None:
        message.source.CopyFrom(encode_prompt(method.source))
    elif not request.cases:
        raise InvalidRequest.at("source", "expected the prompt to patch from, got none")
    message.source.SetInParent()
    write_positions(positions_of(method.positions or None, "positions"), [], message.named_positions)
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
    if method.integration is not None:
        message.integration = INTEGRATIONS[method.integration]


def _rows(request: pb.TraceRequest) -> tuple[str, ...]:
    return row_names((), request.attribution_patching.named_positions, [_MEAN_ROW])


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
            raise missing("the estimates of some components did not arrive")
        if self._asked.HasField("edges") and not self._edges:
            raise missing("the edges did not arrive")
        for name, grid in self._grids.items():
            if not grid.join()[2].all():
                raise missing(f"some estimates of {name} did not arrive")

    def build(self, context: Context) -> AttributionPatchingResult:
        axes: dict[ComponentName, Axes] = {}
        estimates: dict[ComponentName, Floats] = {}
        targets = tuple(target.text for target in context.targets)
        for name, grid in self._grids.items():
            (layers, positions), values, _ = grid.join()
            units = {"unit": tuple(range(values.shape[2]))} if values.ndim == 4 else {}
            places = self._place_labels(context, positions)
            axes[name] = {"layer": layer_labels(layers), "position": places, **units, "target": targets}
            estimates[name] = values.astype(np.float32, copy=False)
        return AttributionPatchingResult(
            **context.common(),
            axes=axes,
            estimates=estimates,
            edges=self._joined_edges(len(targets)),
            verified=tuple(self._verified),
            sizes=self._asked.drop_layers,
        )

    def _place_labels(self, context: Context, positions: tuple[int, ...]) -> tuple[Label, ...]:
        """Positions by number; those that the request names by name. The rows of a reduction are told by its tokens."""
        names = self._asked.named_positions
        if context.rows or not names:
            return positions
        if not all(0 <= entry < len(names) for entry in positions):
            raise ProtocolError(f"the answer has estimates at {list(positions)} of {len(names)} named positions")
        return tuple(str(decode_named(names[entry])) for entry in positions)

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
                raise ProtocolError(f"the answer has edges that do not follow each other, at offset {part.offset}")
            following += len(values)
        return Edges(np.concatenate(ends[0]), np.concatenate(ends[1]), np.concatenate(estimates))


def _verified(message: pb.VerifiedEffect) -> VerifiedEffect:
    site = message.site
    positions: Positions = tuple(map(decode_named, site.named_positions)) or tuple(site.positions)
    place = Site(known_component(site.component), tuple(site.layers), tuple(site.units), positions)
    return VerifiedEffect(place, np.array(message.estimated, np.float32), np.array(message.measured, np.float32))


register(AttributionPatching, Kind(_write, _Assembly, (AttributionPatchingResult, VerifiedEffect, Edges), _rows))
