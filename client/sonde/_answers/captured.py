"""Activations that were read in a run: numpy arrays with named axes."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from sonde._arrays import Axes, Label, data_frame, long_form, widened
from sonde._ask.names import COMPONENT_AXES, WITHOUT_LAYER, ComponentName
from sonde._ask.sites import Site
from sonde._show.display import html_table, page

if TYPE_CHECKING:
    import pandas as pd


class Captured(Mapping["int | ComponentName", npt.NDArray[np.generic]]):
    """The activations read in one run, by the index of their site in the request.

    A component that only one site has can serve as the key too. `axes(key)` has the names of an array's axes: first the
    layer (unless the component has no layers), then the component's own.

    Values that were sent as bfloat16 take two bytes each. Whenever such an array is asked for, it is made anew as
    float32.
    """

    def __init__(self, sites: Sequence[Site], arrays: Sequence[tuple[Axes, npt.NDArray[Any]]]) -> None:
        self._sites = tuple(sites)
        self._arrays = tuple(arrays)

    def __getitem__(self, key: "int | ComponentName") -> npt.NDArray[np.generic]:
        return widened(self._arrays[self._find(key)][1])

    def as_sent(self, key: "int | ComponentName") -> npt.NDArray[Any]:
        """The array in the type in which it was sent, as files have it; bfloat16 is `sonde._arrays.BFLOAT16`."""
        return self._arrays[self._find(key)][1]

    def axes(self, key: "int | ComponentName") -> Axes:
        """The axes of an array, with their labels."""
        return self._arrays[self._find(key)][0]

    def site(self, key: "int | ComponentName") -> Site:
        """The site where an array was read."""
        return self._sites[self._find(key)]

    def component(self, key: "int | ComponentName") -> ComponentName:
        """The component of the site where an array was read."""
        return self.site(key).component

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per entry of each array (needs pandas). Axes that an array does not have are None."""
        parts = [long_form(axes, {"value": widened(array)}) for axes, array in self._arrays]
        names = list(dict.fromkeys(name for axes, _ in self._arrays for name in axes))
        table: dict[str, list[Any]] = {name: [] for name in ("site", "component", *names, "value")}
        for index, part in enumerate(parts):
            count = len(part["value"])
            table["site"] += [index] * count
            table["component"] += [self.component(index)] * count
            for name in (*names, "value"):
                table[name] += part.get(name, [None] * count)
        return data_frame(table)

    def _find(self, key: "int | ComponentName") -> int:
        if isinstance(key, SupportsIndex):
            index = operator.index(key)
            if not 0 <= index < len(self._arrays):
                message = f"expected the index of one of {len(self._arrays)} sites, got {key!r}"
                raise KeyError(message)
            return index
        found = [i for i, site in enumerate(self._sites[: len(self._arrays)]) if site.component == key]
        if len(found) != 1:
            names = [site.component for site in self._sites]
            message = f"expected the component of one site, got {key!r}: {len(found)} of {names}; use an index"
            raise KeyError(message)
        return found[0]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._arrays)))

    def __len__(self) -> int:
        return len(self._arrays)

    def _repr_html_(self) -> str:
        return page(self.table())

    def table(self) -> str:
        """An HTML table of the activations that were read, with their sizes."""
        rows: list[list[object]] = []
        for index, array in self.items():
            axes = " x ".join(f"{name} {len(labels)}" for name, labels in self.axes(index).items())
            values = array.astype(np.float64)
            norm = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
            rows.append([index, self.component(index), axes, str(array.dtype), norm])
        return html_table("activations", ["index", "component", "axes", "data type", "root mean square"], rows)

    def __repr__(self) -> str:
        parts = [
            f"{i}: {site.component} {list(array.shape)}"
            for i, (site, (_, array)) in enumerate(zip(self._sites, self._arrays, strict=False))
        ]
        return f"Captured({', '.join(parts)})"


def captured_axes(site: Site, layers: Sequence[int], shape: Sequence[int], *, by_row: bool = False) -> Axes:
    """Return the axes of activations read at a site.

    Entries are numbered from 0. Positions that the site names have their names, unless one of these means several
    positions; and so have, `by_row`, the rows in which positions were joined.
    """
    names = COMPONENT_AXES[site.component]
    if len(names) != len(shape):
        names = tuple(f"axis_{i}" for i in range(len(shape)))
    axes: dict[str, tuple[Label, ...]] = {} if site.component in WITHOUT_LAYER else {"layer": tuple(layers)}
    axes |= {name: tuple(range(size)) for name, size in zip(names, shape, strict=True)}
    rows = site.row_labels(by_row=by_row)
    place = "query" if "query" in axes else "position"
    if rows and len(axes.get(place, ())) == len(rows):
        axes[place] = rows
    return axes
