"""Small things that results share: labelled axes, columns for data frames, tokens as they are shown."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

_Name = TypeVar("_Name")

Label: TypeAlias = int | str | None
Axes: TypeAlias = Mapping[str, tuple[Label, ...]]
"""The names of an array's axes in their order, each with what its entries stand for."""
Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]


def shape_of(axes: Axes) -> tuple[int, ...]:
    """The shape of an array with these axes."""
    return tuple(len(labels) for labels in axes.values())


def long_form(axes: Axes, columns: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, list[Any]]:
    """Arrays over the same axes as columns with one row per entry: first the labels, then the values."""
    rows = list(itertools.product(*axes.values()))
    table: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(axes)}
    for name, values in columns.items():
        table[name] = values.reshape(-1).tolist()
    return table


def data_frame(table: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """A pandas data frame of these columns.

    Raises:
        ImportError: without pandas, with what to install.
    """
    try:
        import pandas as pd
    except ImportError:
        message = "to_dataframe() needs pandas: pip install pandas"
        raise ImportError(message) from None
    return pd.DataFrame(dict(table))


def common_array(
    arrays: Mapping[Any, npt.NDArray[np.generic]], axes: Mapping[Any, Axes], name: str
) -> tuple[Axes, npt.NDArray[np.generic]]:
    """Arrays of several components in one, [component, ...]; a single one as it is.

    Raises:
        ValueError: if their axes differ.
    """
    if len(arrays) == 1:
        ((key, array),) = arrays.items()
        return axes[key], array
    first = next((axes[key] for key in arrays), {})
    if not arrays or any(dict(axes[key]) != dict(first) for key in arrays):
        shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
        raise ValueError(f"there is no single array: take one of {name} ({shapes or 'none'})")
    return {"component": tuple(arrays), **first}, np.stack(list(arrays.values()))


def largest(values: Floats, count: int) -> list[tuple[int, ...]]:
    """The indices of the `count` entries that are largest in size, the largest first; NaN is none of them."""
    size = np.abs(values.reshape(-1)).astype(np.float64)
    size[np.isnan(size)] = -1.0
    order = np.argsort(-size, kind="stable")[: max(count, 0)]
    return [tuple(int(i) for i in np.unravel_index(flat, values.shape)) for flat in order if size[flat] >= 0]


def strongest(arrays: Mapping[_Name, Floats], count: int) -> list[tuple[_Name, tuple[int, ...]]]:
    """The names and indices of the `count` entries of several arrays that are largest in size, the largest first."""
    found = [(name, place) for name, values in arrays.items() for place in largest(values, count)]
    return sorted(found, key=lambda entry: -abs(float(arrays[entry[0]][entry[1]])))[:count]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; NaN where either side is one value."""
    if not len(first):
        return float("nan")
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    scale = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / scale) if scale else float("nan")


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return mean


def visible(text: str) -> str:
    """A token's text on one line, with line breaks and other control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
