"""Activations that were read in a run: numpy arrays with named axes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sonde._arrays import Axes, Label, data_frame, long_form
from sonde._ask.names import COMPONENT_AXES, WITHOUT_LAYER, ComponentName
from sonde._ask.sites import Site
from sonde._show.display import html_table, page

if TYPE_CHECKING:
    import pandas as pd


class Captured(Mapping["int | ComponentName", npt.NDArray[np.generic]]):
    """The activations read in one run, by the index of their site in the request.

    A component that only one site has can serve as the key too. `axes(key)` has the names of an array's axes: first the
    layer (unless the component has no layers), then the component's own.
    """

    def __init__(self, sites: Sequence[Site], arrays: Sequence[tuple[Axes, npt.NDArray[np.generic]]]) -> None:
        self._sites = tuple(sites)
        self._arrays = tuple(arrays)

    def __getitem__(self, key: "int | ComponentName") -> npt.NDArray[np.generic]:
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
        parts = [long_form(axes, {"value": array}) for axes, array in self._arrays]
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
        if isinstance(key, int):
            if not 0 <= key < len(self._arrays):
                raise KeyError(key)
            return key
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


def captured_axes(component: ComponentName, layers: Sequence[int], shape: Sequence[int]) -> Axes:
    """Return the axes of activations read at a site; entries are numbered from 0."""
    names = COMPONENT_AXES[component]
    if len(names) != len(shape):
        names = tuple(f"axis_{i}" for i in range(len(shape)))
    axes: dict[str, tuple[Label, ...]] = {} if component in WITHOUT_LAYER else {"layer": tuple(layers)}
    return axes | {name: tuple(range(size)) for name, size in zip(names, shape, strict=True)}
