"""Helpers for labelled arrays: axes, columns for data frames, the largest entries, ranks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

_Name = TypeVar("_Name")

Label: TypeAlias = int | str | None
Axes: TypeAlias = Mapping[str, tuple[Label, ...]]
"""The names of an array's axes in order, each with the labels of its entries."""
Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]


BFLOAT16: Final = np.dtype([("bfloat16", np.uint16)])
"""How arrays of bfloat16, which numpy lacks, are kept in two bytes a value: the upper half of a float32."""


def widened(array: npt.NDArray[Any]) -> npt.NDArray[np.generic]:
    """The array as numpy computes with it: bfloat16 as float32."""
    if array.dtype != BFLOAT16:
        return array
    return (array["bfloat16"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def shape_of(axes: Axes) -> tuple[int, ...]:
    """Return the shape of an array with these axes."""
    return tuple(len(labels) for labels in axes.values())


def long_form(axes: Axes, columns: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, list[Any]]:
    """Return arrays over the same axes as columns, one row per entry: first the labels, then the values."""
    rows = list(itertools.product(*axes.values()))
    table: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(axes)}
    for name, values in columns.items():
        table[name] = values.reshape(-1).tolist()
    return table


def data_frame(table: Mapping[str, Sequence[Any]]) -> "pd.DataFrame":
    """Return these columns as a pandas data frame.

    Raises:
        ImportError: if pandas is not installed; the message says how to install it.
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
    """Stack the arrays of several components, [component, ...]; return a single one unchanged.

    Raises:
        ValueError: if there is none, or their axes differ.
    """
    if len(arrays) == 1:
        ((key, array),) = arrays.items()
        return axes[key], array
    first = next((axes[key] for key in arrays), {})
    if not arrays or any(dict(axes[key]) != dict(first) for key in arrays):
        shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
        raise ValueError(f"there is no single array: choose one of `{name}` ({shapes or 'none'})")
    return {"component": tuple(arrays), **first}, np.stack(list(arrays.values()))


def largest(values: Floats, count: int) -> list[tuple[int, ...]]:
    """Return the indices of the `count` entries of largest magnitude, the largest first; NaN is left out."""
    size = np.abs(values.reshape(-1)).astype(np.float64)
    size[np.isnan(size)] = -1.0
    order = np.argsort(-size, kind="stable")[: max(count, 0)]
    return [tuple(int(i) for i in np.unravel_index(flat, values.shape)) for flat in order if size[flat] >= 0]


def strongest(arrays: Mapping[_Name, Floats], count: int) -> list[tuple[_Name, tuple[int, ...]]]:
    """Like `largest`, over several arrays: return names and indices."""
    found = [(name, place) for name, values in arrays.items() for place in largest(values, count)]
    return sorted(found, key=lambda entry: -abs(float(arrays[entry[0]][entry[1]])))[:count]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; ties share their mean rank. NaN if all values of either side are equal."""
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
    """Return a token's text on one line, with line breaks and other control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
