"""The answers to the cases of a dataset, one by one: a sequence of single results, and their arrays stacked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, SupportsIndex, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sonde._answers import files
from sonde._answers.captured import Captured
from sonde._answers.requests import Request, asked_html
from sonde._answers.results import Cost, Provenance, Result, cost_table, cost_text
from sonde._arrays import Axes, visible
from sonde._show import terminal
from sonde._show.display import note, page, sortable_table

if TYPE_CHECKING:
    import pandas as pd

ResultT_co = TypeVar("ResultT_co", bound=Result, covariant=True)
_MOST_LISTED: Final = 50
"""The most rows in a notebook's table of cases."""
_HEADER: Final = ("case", "group", "prompt", "target", "p", "what comes next")


class StackedActivations(Mapping["int | str", npt.NDArray[Any]]):
    """The activations of all cases, by the index of their site or by its component: [case, layer, position, ...].

    A site that names a single position, or whose positions are pooled in one row, has no position axis. An array is
    stacked when it is asked for; those that were sent as bfloat16 become float32.
    """

    def __init__(self, parts: Sequence[Captured]) -> None:
        self._parts = parts

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        return stacked([self._one(part, key) for part in self._parts], f"activations[{key!r}]")

    def axes(self, key: Any) -> Axes:
        """The axes of an array, with their labels."""
        first = self._parts[0]
        dropped = self._dropped(first, key)
        own = {name: labels for i, (name, labels) in enumerate(first.axes(key).items()) if i != dropped}
        return {"case": tuple(range(len(self._parts))), **own}

    def _one(self, part: Captured, key: Any) -> npt.NDArray[Any]:
        dropped = self._dropped(part, key)
        return part[key] if dropped is None else part[key].squeeze(dropped)

    @staticmethod
    def _dropped(part: Captured, key: Any) -> int | None:
        """The number of the position axis, if it stands for the only place of its site."""
        axes = part.axes(key)
        if "position" not in axes or len(axes["position"]) != 1:
            return None
        single = len(part.site(key).positions) == 1 or axes["position"] == ("all",)
        return list(axes).index("position") if single else None

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts[0] if self._parts else ())

    def __len__(self) -> int:
        return len(self._parts[0]) if self._parts else 0

    def __repr__(self) -> str:
        shapes = (
            f"{i}: {self._parts[0].component(i)} {[len(labels) for labels in self.axes(i).values()]}" for i in self
        )
        return f"StackedActivations({', '.join(shapes)})"


@dataclass(frozen=True, eq=False, repr=False)
class CasesResult(Sequence[ResultT_co], Generic[ResultT_co]):
    """The results of the cases, in the order of the dataset.

    Besides being a sequence, it has the attributes of the single results for all cases at once: arrays with a first
    axis `case`, where all cases have them in one shape. `result.log_probabilities` is then [case, ...], and
    `result.restored["mlp_out"]` is [case, position, layer, target].
    """

    results: tuple[ResultT_co, ...]
    """The results that have arrived: all of them, except in the partial results of a stream and after a dry run."""
    groups: tuple[str, ...]
    """The groups of the cases of the dataset."""
    cost: Cost
    """The cost of all cases."""
    provenance: Provenance
    dry_run: bool = False
    """True if nothing was run: only the cost is known."""
    request: Request | None = None
    """What was asked, with all cases. None in files of versions that did not keep it."""

    @property
    def complete(self) -> bool:
        """Whether every case has been answered."""
        return len(self.results) == len(self.groups)

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ResultT_co: ...
    @overload
    def __getitem__(self, index: slice) -> "CasesResult[ResultT_co]": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "ResultT_co | CasesResult[ResultT_co]":
        """The result of one case; a slice has those of several."""
        if not isinstance(index, slice):
            return self.results[index]
        chosen = self.results[index]
        return replace(self, results=chosen, groups=self.groups[: len(self.results)][index])

    def __iter__(self) -> Iterator[ResultT_co]:
        return iter(self.results)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the single results, for all cases: arrays are stacked, other values listed."""
        if name.startswith("_") or not self.results:
            message = f"{type(self).__name__} of {len(self.__dict__.get('results', ()))} cases has no {name!r}"
            raise AttributeError(message)
        return _together([getattr(one, name) for one in self.results], name)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The axes (first `case`, then those of the single results) and the array that `np.asarray(result)` returns.

        Raises:
            ValueError: if the shapes of the cases differ.
        """
        if not self.results:
            message = "a dry run has no array, only the cost"
            raise ValueError(message)
        parts = [one.labelled() for one in self.results]
        captured = [getattr(one, "activations", None) for one in self.results]
        if all(isinstance(one, Captured) and len(one) == 1 for one in captured):
            whole = StackedActivations([one for one in captured if isinstance(one, Captured)])
            return whole.axes(0), whole[0]
        array = stacked([values for _, values in parts], "the single array")
        return {"case": tuple(range(len(parts))), **parts[0][0]}, array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        array = self.labelled()[1]
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError(f"cannot convert an array of {array.dtype} to {np.dtype(dtype)} without a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def to_dataframe(self) -> "pd.DataFrame":
        """The tables of all cases below each other, with the columns `case` and `group` first (needs pandas)."""
        tables = [one.to_dataframe() for one in self.results]
        if not tables:
            message = "a dry run has no table, only the cost"
            raise ValueError(message)
        import pandas as pd

        for number, table in enumerate(tables):
            table.insert(0, "group", self.groups[number])
            table.insert(0, "case", number)
        return pd.concat(tables, ignore_index=True)

    def save(self, path: "str | Path") -> None:
        """Save all results as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        words = {field.name: str(getattr(self.provenance, field.name)) for field in fields(self.provenance)}
        files.write(self, path, words)

    def to_text(self, count: int = 10) -> str:
        """The cases as text for a terminal: a table of up to `count` rows; after a dry run, the cost."""
        if self.dry_run:
            return cost_text(self.cost)
        table = terminal.table(_HEADER, self._rows(count))
        more = f"\n… and {len(self) - count:,} more" if len(self) > count else ""
        return f"{self!r}\n{table}{more}"

    def _rows(self, count: int) -> list[list[object]]:
        rows: list[list[object]] = []
        for number, one in enumerate(self.results[:count]):
            text = visible("".join(token.text for token in one.tokens))
            shown = text if len(text) <= 60 else f"…{text[-59:]}"
            known = one.prediction
            target = repr(visible(one.targets[0].text)) if one.targets else ""
            probability = float(known.probabilities[0]) if len(known.probabilities) else float("nan")
            top = repr(visible(known.top_tokens[0].text)) if known.top_tokens else ""
            rows.append([number, self.groups[number], shown, target, probability, top])
        return rows

    def __repr__(self) -> str:
        if self.dry_run:
            return f"CasesResult(dry run: {self.cost.cases:,} cases, {self.cost.runs:,} runs)"
        kind = f" of {type(self.results[0]).__name__}" if self.results else ""
        state = "" if self.complete else f", {len(self):,} answered"
        groups = len(set(self.groups))
        return f"CasesResult({len(self.groups):,} cases{kind}{f', {groups} groups' if groups > 1 else ''}{state})"

    def _repr_html_(self) -> str:
        if self.dry_run:
            return page(cost_table(self.cost))
        more = f"; the first {_MOST_LISTED} are listed" if len(self) > _MOST_LISTED else ""
        listed = sortable_table("cases", _HEADER, self._rows(_MOST_LISTED))
        return page(note(f"{self!r}{more}"), listed, *asked_html(self.request))


def stacked(arrays: Sequence[npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    """The arrays of all cases along a first axis.

    Raises:
        ValueError: if their shapes differ.
    """
    shapes = {array.shape: i for i, array in enumerate(arrays)}
    if len(shapes) > 1:
        some = " and ".join(f"{list(shape)} (case {i})" for shape, i in list(shapes.items())[:2])
        message = f"{name} has no common shape: {some}; index the cases one by one, or name positions that all have"
        raise ValueError(message)
    return np.stack(arrays)


def _together(values: list[Any], name: str) -> Any:
    """The values of an attribute in all cases."""
    first = values[0]
    if isinstance(first, np.ndarray):
        return stacked(values, name)
    if isinstance(first, Captured):
        return StackedActivations(values)
    if isinstance(first, Mapping) and all(isinstance(entry, np.ndarray) for entry in first.values()):
        return {key: stacked([value[key] for value in values], f"{name}[{key!r}]") for key in first}
    if isinstance(first, float):
        return np.array(values)
    if callable(first):
        message = f"expected an attribute of the single results, got their method {name!r}; call it case by case"
        raise AttributeError(message)  # noqa: TRY004 - this is about the name
    return values
