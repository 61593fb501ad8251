"""Statistics over the cases of a dataset, computed on the server: means, deviations and counts of whole results."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sonde._answers import files
from sonde._answers.largest import LargestActivations
from sonde._answers.requests import Request, asked_html
from sonde._answers.results import Cost, Provenance, Result, cost_table, cost_text
from sonde._answers.statistics import standard_error
from sonde._arrays import Axes, data_frame, long_form
from sonde._show.display import page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ResultT_co = TypeVar("ResultT_co", bound=Result, covariant=True)
_MEASURED: Final = ("log_probability", "probability", "logit", "kl_divergence", "rank", "estimate", "value")


@dataclass(frozen=True, eq=False, repr=False)
class Statistics(Generic[ResultT_co]):
    """The statistics of one group of cases."""

    mean: ResultT_co
    """A result of the single kind, whose numbers are means over the cases. Positions are rows, named as requested.

    Probabilities are arithmetic means. Effects in nats are differences of mean log-probabilities. A target that is not
    the same in all cases is called `target`.
    """
    deviation: ResultT_co
    """The same with standard deviations (divisor: the count)."""
    counts: ResultT_co
    """The same with the numbers of values that the means are over."""
    cases: int
    """How many cases are in the group."""
    largest: LargestActivations | None = None
    """The largest activations and where they are; None unless requested."""

    @property
    def standard_error(self) -> ResultT_co:
        """The same with the standard errors of the means; NaN where there are fewer than two values."""
        return standard_error(self.deviation, self.counts)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The axes and the array of the mean."""
        return self.mean.labelled()

    def to_dataframe(self) -> "pd.DataFrame":
        """The table of the mean, with the columns `..._deviation` and `count` (needs pandas)."""
        return data_frame(self._columns())

    def _columns(self) -> dict[str, list[Any]]:
        mean, deviation, counts = map(_table, (self.mean, self.deviation, self.counts))
        measured = [name for name in _MEASURED if name in mean]
        spreads = {f"{name}_deviation": deviation[name] for name in measured}
        number = [int(count) if count == count else 0 for count in counts[measured[0]]]  # noqa: PLR0124 - NaN
        return {**mean, **spreads, "count": number}

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw the mean as a single result is drawn; bars and lines have bars for the standard error.

        Raises:
            ValueError: if results of this kind are not drawn.
        """
        draw: Any = getattr(self.mean, "plot", None)
        if draw is None:
            message = f"a {type(self.mean).__name__} cannot be drawn"
            raise ValueError(message)
        given = {"target": target, "error": self.standard_error}
        taken = inspect.signature(draw).parameters
        return cast("Figure", draw(path, **{name: value for name, value in given.items() if name in taken}))


def mean_over(cases: int, group: str) -> str:
    """What the mean over the cases of a group is, in words."""
    return f"mean over {cases:,} prompt{'s' * (cases != 1)}{f' of group {group}' if group else ''}"


def _table(result: Result) -> dict[str, list[Any]]:
    """The table of a result as columns; that of a prediction alone lists its targets."""
    frame = result.to_dataframe()
    if len(frame):
        return {str(name): frame[name].tolist() for name in frame.columns}
    known = result.prediction
    axes: Axes = {"target": tuple(token.text for token in result.targets)}
    numbers = {"log_probability": known.log_probabilities, "probability": known.probabilities, "logit": known.logits}
    return long_form(axes, numbers)


@dataclass(frozen=True, eq=False, repr=False)
class Reduced(Generic[ResultT_co]):
    """The answer to a dataset with `reduce="mean"`: statistics over all cases, or by group.

    With one group, `mean`, `deviation`, `counts` and the others are its own; otherwise `groups` has them by name.
    """

    groups: Mapping[str, Statistics[ResultT_co]]
    """The statistics of each group, by its name; cases without a group are in the group without a name."""
    cases: int
    """How many cases the statistics are over; in the partial results of a stream, those so far."""
    cost: Cost
    provenance: Provenance
    dry_run: bool = False
    """True if nothing was run: only the cost is known."""
    request: Request | None = None
    """What was asked, with all cases. None in files of versions that did not keep it."""

    @property
    def mean(self) -> ResultT_co:
        """A result of the single kind, whose numbers are means over the cases (see `Statistics.mean`)."""
        return self._only.mean

    @property
    def deviation(self) -> ResultT_co:
        """The same with standard deviations (divisor: the count)."""
        return self._only.deviation

    @property
    def counts(self) -> ResultT_co:
        """The same with the numbers of values that the means are over."""
        return self._only.counts

    @property
    def standard_error(self) -> ResultT_co:
        """The same with the standard errors of the means; NaN where there are fewer than two values."""
        return self._only.standard_error

    @property
    def largest(self) -> LargestActivations | None:
        """The largest activations and where they are; None unless requested."""
        return self._only.largest

    @property
    def _only(self) -> Statistics[ResultT_co]:
        if len(self.groups) != 1:
            names = ", ".join(map(repr, self.groups)) or "none, after a dry run"
            message = f"expected one group of cases, got {names}; choose one with `groups[name]`"
            raise ValueError(message)
        return next(iter(self.groups.values()))

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The axes and the array of the mean; of several groups, stacked along a first axis `group`."""
        parts = [one.labelled() for one in self.groups.values()]
        if len(parts) < 2:
            return self._only.labelled()
        return {"group": tuple(self.groups), **parts[0][0]}, np.stack([values for _, values in parts])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        array = self.labelled()[1]
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError(f"cannot convert an array of {array.dtype} to {np.dtype(dtype)} without a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def to_dataframe(self) -> "pd.DataFrame":
        """The tables of the means, with the columns `group`, `..._deviation` and `count` (needs pandas)."""
        import pandas as pd

        tables = []
        for name, one in self.groups.items():
            table = one.to_dataframe()
            table.insert(0, "group", name)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw the mean of the only group; of several, draw each by `groups[name].plot()`."""
        return self._only.plot(path, target=target)

    def save(self, path: "str | Path") -> None:
        """Save the statistics as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        words = {field.name: str(getattr(self.provenance, field.name)) for field in fields(self.provenance)}
        files.write(self, path, words)

    def to_text(self, count: int = 10) -> str:
        """The means as text for a terminal; after a dry run, the cost."""
        if self.dry_run:
            return cost_text(self.cost)
        return "\n\n".join(f"{self._title(name)}\n{one.mean.to_text(count)}" for name, one in self.groups.items())

    def _title(self, name: str) -> str:
        return mean_over(self.groups[name].cases, name)

    def __repr__(self) -> str:
        if self.dry_run:
            return f"Reduced(dry run: {self.cost.cases:,} cases, {self.cost.runs:,} runs)"
        if len(self.groups) != 1:
            return f"Reduced({self.cases:,} cases, groups {', '.join(map(repr, self.groups))})"
        return f"Reduced({self.cases:,} cases, mean {self.mean!r})"

    def _repr_html_(self) -> str:
        if self.dry_run:
            return page(cost_table(self.cost))
        return page(*(one.mean.html() for one in self.groups.values()), *asked_html(self.request))
