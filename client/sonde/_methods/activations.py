"""Reading activations of the unchanged run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.results import TraceResult
from sonde._arrays import Axes, Label, common_array
from sonde._ask.indices import Indices, indices
from sonde._ask.names import ComponentName
from sonde._ask.sites import Site
from sonde._methods.method import Assembly, Kind, Method, register
from sonde._show import plotting
from sonde._show.palette import look
from sonde._wire.context import Context
from sonde._wire.encoding import encode_site
from sonde._wire.parts import CLEAN, Values
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_PATTERNS: Final = ("attention_pattern", "attention_scores")


@dataclass(frozen=True, eq=False, repr=False)
class ActivationsResult(TraceResult):
    """The activations of the unchanged run."""

    activations: Captured
    """By the index of their site, or by its component."""

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The activations of the site; of several sites with equal axes, stacked along a first axis `component`."""
        found = self.activations
        names = [f"{index} {found.component(index)}" for index in found]
        arrays = dict(zip(names, found.values(), strict=True))
        return common_array(arrays, {name: found.axes(index) for index, name in enumerate(names)}, "activations")

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per entry of each site (needs pandas). Axes that a site does not have are None."""
        return self.activations.to_dataframe()

    def plot(
        self,
        path: "str | Path | None" = None,
        *,
        site: "int | ComponentName | None" = None,
        layers: Indices = None,
        heads: Indices = None,
    ) -> "Figure":
        """Draw one site (needs matplotlib): attention from each query to each key, of anything else the norm.

        Up to six patterns of attention have their tokens beside them; more are small, a row for each layer. The norm is
        L2, over all units of a position.

        Args:
            path: where the figure is saved; None saves nothing.
            site: the index of the site or its component; None takes the first pattern of attention, or the first site.
            layers: the layers to draw; None means all that were read.
            heads: the heads to draw, for attention; None means all that were read.

        Raises:
            ValueError: if a layer or a head was not read.
        """
        index = self._drawn_site() if site is None else site
        if self.activations.component(index) in _PATTERNS:
            return plotting.save(self._patterns(index, layers, heads), path)
        return plotting.save(self._norms(index, layers), path)

    def _drawn_site(self) -> int:
        return next((i for i in self.activations if self.activations.component(i) in _PATTERNS), 0)

    def _patterns(self, site: "int | ComponentName", layers: Indices, heads: Indices) -> "Figure":
        name, axes = self.activations.component(site), self.activations.axes(site)
        units = self.activations.site(site).units or axes["head"]
        down, over = _chosen(axes["layer"], layers, "layers"), _chosen(units, heads, "heads")
        array = self.activations[site].astype(np.float32)
        array[~np.isfinite(array)] = np.nan
        rows, columns = self._axis_texts(site, "query"), self.token_labels(range(array.shape[-1]))
        panels = [
            plotting.Panel(f"{axes['layer'][i]}.{units[j]}", array[i, j], rows, columns, "Blues", "")
            for i in down
            for j in over
        ]
        pattern = name == "attention_pattern"
        shown = array[np.ix_(down, over)]
        low, high = (0.0, 1.0) if pattern else (float(np.nanmin(shown)), float(np.nanmax(shown)))
        what = "Where attention goes" if pattern else "Scores of attention before the softmax"
        title = f"{what}, by layer.head (rows: queries, columns: keys)"
        if len(panels) == 1:
            title = f"{what} in head {panels[0].title}"
            panels = [replace(panels[0], title="")]
        legend = "weight" if pattern else "score"
        return plotting.attention(self._titled(title), panels, low, high, across=len(over), legend=legend)

    def _norms(self, site: "int | ComponentName", layers: Indices) -> "Figure":
        name, axes = self.activations.component(site), self.activations.axes(site)
        values = self.activations[site].astype(np.float32)
        known = axes.get("layer")
        values = values[np.newaxis] if known is None else values[_chosen(known, layers, "layers")]
        columns = ("",) if known is None else tuple(known[i] for i in _chosen(known, layers, "layers"))
        norms = np.sqrt((values**2).sum(axis=tuple(range(2, values.ndim))))
        across = "" if known is None else "layer"
        title = self._titled(f"L2 norm at each token: {look(name).title}")
        panel = plotting.Panel("", norms.T, self._axis_texts(site, "position"), columns, "Blues", across)
        return plotting.panels([panel], 0.0, max(float(np.nanmax(norms, initial=0.0)), 1e-12), title=title)

    def _axis_texts(self, site: "int | ComponentName", axis: str) -> tuple[str, ...]:
        """The tokens at the positions of an axis; rows that have names keep them."""
        labels, place = self.activations.axes(site)[axis], self.activations.site(site)
        if any(isinstance(label, str) for label in labels):
            return tuple(map(str, labels))
        first = place.from_position
        if isinstance(first, int):
            return self.token_labels(range(first % len(self.tokens), len(self.tokens)))
        chosen = [p % len(self.tokens) for p in place.positions if isinstance(p, int)]
        return self.token_labels(chosen or range(len(labels)))

    def _pieces(self) -> list[str]:
        return [self._strip("prompt"), self.activations.table()]

    def _summary(self) -> str:
        return f", {self.activations!r}"


def _chosen(known: Sequence[Label], asked: Indices, name: str) -> list[int]:
    """Where the labels that were asked for are among the known ones; None asks for all.

    Raises:
        ValueError: if one is not there.
    """
    wanted = indices(asked, name) or known
    lacking = [label for label in wanted if label not in known]
    if lacking:
        raise ValueError(f"expected {name} that were read, {', '.join(map(str, known))}; got {lacking[0]}")
    return [list(known).index(label) for label in wanted]


@dataclass(frozen=True, slots=True, init=False)
class Activations(Method[ActivationsResult]):
    """Read activations of the unchanged run, as in `Activations(sonde.residual(layer=3), sonde.head())`.

    `result.activations[0]` is the array of the first site, with the layer as its first axis (unless the component has
    none): for the residual stream, [layer, position, D]. `result.activations.axes(0)` has the labels of the axes.

    Args:
        sites: the places to read; an argument that a site leaves out means all.

    Raises:
        InvalidRequest: if there is no site.
    """

    sites: tuple[Site, ...] = field()

    def __init__(self, *sites: Site) -> None:
        if not sites:
            raise InvalidRequest.at("activations", "expected at least one site, got none")
        object.__setattr__(self, "sites", sites)


def _write(method: Activations, request: pb.TraceRequest) -> None:
    request.activations.sites.extend(map(encode_site, method.sites))


class _Assembly(Assembly[ActivationsResult]):
    def __init__(self, method: Activations, request: pb.TraceRequest) -> None:
        by_row = request.HasField("reduction") or request.activations.pooling != pb.POOLING_UNSPECIFIED
        self._values = Values(method.sites, by_row=by_row)

    def take(self, context: Context, message: pb.TraceResponse) -> None:  # noqa: ARG002 - needs no more than its shapes
        for part in message.activations:
            self._values.add(part)

    def check(self, context: Context) -> None:  # noqa: ARG002
        self._values.check([CLEAN])

    def build(self, context: Context) -> ActivationsResult:
        return ActivationsResult(**context.common(), activations=self._values.captured(CLEAN))


register(Activations, Kind(_write, _Assembly, (ActivationsResult,)))
