"""Reading activations of the unchanged run."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.results import TraceResult
from sonde._arrays import Axes, common_array
from sonde._ask.sites import Site
from sonde._methods.method import Assembly, Kind, Method, register
from sonde._wire.context import Context
from sonde._wire.encoding import encode_site
from sonde._wire.parts import CLEAN, Values
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd


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

    def _pieces(self) -> list[str]:
        return [self._strip("prompt"), self.activations.table()]

    def _summary(self) -> str:
        return f", {self.activations!r}"


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
