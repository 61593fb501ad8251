"""What an intervention gives: numpy arrays that come with the names of their axes.

Log-probabilities are natural. A run is one pass over the prompt: the unchanged one is `clean`, the others are those of
the interventions, in the order of the list or of the sweep.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.predictions import Continuation, Prediction, Run, TokenPrediction
from sonde._answers.results import Result
from sonde._arrays import Axes, Booleans, Floats, Integers, Label, data_frame, largest, long_form, shape_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Change:
    """A place, and what changing it did to a target."""

    run: int
    """Of the plan, counted from 0; `result[run]` is the rest of it."""
    layer: Label
    unit: Label
    position: Label
    target: str
    effect: float
    """By the measure asked for: unless said otherwise, log-probability here less that of the unchanged run."""
    probability: float
    clean_probability: float

    @property
    def place(self) -> str:
        """Where, in words."""
        named = (("layer", self.layer), ("unit", self.unit), ("position", self.position))
        return ", ".join(f"{name} {label}" for name, label in named if label is not None) or f"run {self.run}"

    def __repr__(self) -> str:
        return (
            f"Change({self.place}: {self.target!r} {self.clean_probability:.4g} -> {self.probability:.4g}, "
            f"effect {self.effect:+.4g})"
        )


Measure: TypeAlias = Literal["log_probability", "probability", "logit", "kl_divergence"]


def _of_target(values: Floats, target: int) -> Floats:
    chosen: Floats = values[..., target]
    return chosen


@dataclass(frozen=True, eq=False, repr=False)
class InterventionResult(Result):
    """What each run's edits did. Arrays are [run, ...] for a list and [layer, unit, position, ...] for a sweep."""

    axes: Axes
    """The axes of `log_probabilities` with their labels: run, target; or layer, unit, position, target."""
    log_probabilities: Floats
    """[run, target], or [layer, unit, position, target]"""
    logits: Floats
    """Likewise; a difference where the target has a contrast."""
    kl_divergences: Floats | None
    """[run], or [layer, unit, position]: KL(unchanged || changed) in nats; None if it was not asked for."""
    edit_norms: Floats | None
    """[run, edit], or [layer, unit, position, edit]: L2 distance by which each edit moved what it hit."""
    top_token_ids: Integers
    """[run, k], or [layer, unit, position, k]"""
    top_log_probabilities: Floats
    arrived: Booleans
    """[run], or [layer, unit, position]: False where a partial result is still NaN."""
    _texts: Mapping[int, str]
    _activations: Sequence[Captured]
    _continuations: Sequence[Continuation | None]

    @property
    def clean(self) -> Prediction:
        """The unchanged run."""
        return self.prediction

    @property
    def complete(self) -> bool:
        """Whether every run has arrived; only a partial result of a stream is not complete."""
        return bool(self.arrived.all())

    @property
    def probabilities(self) -> Floats:
        """As `log_probabilities`."""
        return np.exp(self.log_probabilities)

    @property
    def effect(self) -> Floats:
        """As `log_probabilities`: less those of the unchanged run."""
        return self.log_probabilities - self.clean.log_probabilities

    @property
    def generated(self) -> list[Continuation | None]:
        """What every run went on to say, by run; None where nothing was generated."""
        return list(self._continuations)

    def __len__(self) -> int:
        return self.arrived.size

    def __getitem__(self, run: int | tuple[int, ...]) -> Run:
        """One run: by its number, or in a sweep by its indices along layer, unit and position."""
        if isinstance(run, tuple):
            run = int(np.arange(len(self)).reshape(self.arrived.shape)[run])
        flat = range(len(self))[run]
        return Run(
            self.targets,
            self._by_run(self.log_probabilities)[flat],
            self._by_run(self.logits)[flat],
            self._ranking(flat),
            self._activations[flat] if self._activations else Captured((), ()),
            self._continuations[flat] if self._continuations else None,
            self._by_run(self.effect)[flat],
            None if self.kl_divergences is None else float(self.kl_divergences.reshape(-1)[flat]),
            np.empty(0, np.float32) if self.edit_norms is None else self._by_run(self.edit_norms)[flat],
        )

    def __iter__(self) -> Iterator[Run]:
        return (self[run] for run in range(len(self)))

    def top(self, count: int = 5, *, run: int | tuple[int, ...] = 0) -> list[TokenPrediction]:
        """The most probable tokens of a changed run; `clean.top(count)` has those of the unchanged one."""
        return self[run].top(count)

    def most_changed(self, count: int = 10, *, target: int = 0, by: Measure = "log_probability") -> list[Change]:
        """The runs that moved a target most, the largest change first, up or down.

        Args:
            count: how many.
            target: the target's index.
            by: what is compared: differences of log-probabilities, probabilities or logits to the unchanged run, or
                the KL divergence.

        Raises:
            ValueError: by KL divergence, if the request did not ask for it.
        """
        effects = self._measure(by, target).reshape(-1)
        probabilities = self._by_run(self.probabilities)[:, target]
        return [
            Change(
                run,
                *self._place(run),
                self.targets[target].text,
                float(effects[run]),
                float(probabilities[run]),
                float(self.clean.probabilities[target]),
            )
            for (run,) in largest(effects, count)
        ]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `log_probabilities`, which `np.asarray(result)` gives."""
        return self.axes, self.log_probabilities

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per run and target (needs pandas)."""
        columns: dict[str, npt.NDArray[np.generic]] = {
            "log_probability": self.log_probabilities,
            "probability": self.probabilities,
            "effect": self.effect,
            "logit": self.logits,
        }
        if self.kl_divergences is not None:
            columns["kl_divergence"] = np.repeat(self.kl_divergences.reshape(-1), len(self.targets))
        return data_frame(long_form(self.axes, columns))

    def plot(self, path: "str | Path | None" = None, *, target: int = 0) -> "Figure":
        """Draw the effects, as bars or as a heat map, and save them if a path is given (needs matplotlib)."""
        from sonde._show import plotting

        return plotting.save(plotting.interventions(self, target=target), path)

    def _measure(self, by: Measure, target: int) -> Floats:
        if by == "log_probability":
            return _of_target(self.effect, target)
        if by == "probability":
            return _of_target(self.probabilities - self.clean.probabilities, target)
        if by == "logit":
            return _of_target(self.logits - self.clean.logits, target)
        if self.kl_divergences is None:
            message = "the answer has no KL divergences; ask with kl_divergence=True"
            raise ValueError(message)
        return self.kl_divergences

    def _by_run(self, array: Floats) -> Floats:
        return array.reshape(len(self), -1)

    def _place(self, run: int) -> tuple[Label, Label, Label]:
        if "run" in self.axes:
            return (None, None, None)
        layer, unit, position = np.unravel_index(run, self.arrived.shape)
        return self.axes["layer"][layer], self.axes["unit"][unit], self.axes["position"][position]

    def _ranking(self, run: int) -> tuple[TokenPrediction, ...]:
        if not self.top_token_ids.size:
            return ()
        ids = self.top_token_ids.reshape(len(self), -1)[run]
        values = self.top_log_probabilities.reshape(len(self), -1)[run]
        return tuple(
            TokenPrediction(int(i), self._texts.get(int(i), f"<{i}>"), float(v))
            for i, v in zip(ids, values, strict=True)
        )

    def __repr__(self) -> str:
        axes = " x ".join(f"{name} {size}" for name, size in zip(self.axes, shape_of(self.axes), strict=True))
        state = ", dry run" if self.dry_run else "" if self.complete else ", partial"
        return f"InterventionResult({axes}{state})"

    def __str__(self) -> str:
        if self.dry_run:
            return f"{self!r}\n{self.cost}"
        lines = [repr(self), f"unchanged: {self.clean!r}"]
        return "\n".join(lines + [f"  {change!r}" for change in self.most_changed(5)])
