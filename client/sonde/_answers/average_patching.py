"""Activation patching, averaged over pairs of prompts."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from sonde._answers import files
from sonde._answers.interventions import InterventionResult
from sonde._answers.reduced import Reduced
from sonde._arrays import Axes, Floats, data_frame, long_form
from sonde._show import plotting

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class AveragePatching:
    """How much of the clean answer each place restores, on average: 0 is the corrupted runs, 1 is the clean runs."""

    result: Reduced[InterventionResult]
    """The statistics over the pairs, as `client.intervene(..., reduce="mean")` returns them."""
    clean: float
    """The mean logit difference of the clean prompts."""

    @property
    def corrupted(self) -> float:
        """The mean logit difference of the corrupted prompts."""
        return float(self.result.mean.clean.logits[0])

    @property
    def axes(self) -> Axes:
        """The axes of `scores`, with their labels."""
        return {name: labels for name, labels in self.result.mean.axes.items() if name != "target"}

    @property
    def scores(self) -> Floats:
        """[layer, unit, position]: (LD - LD corrupted) / (LD clean - LD corrupted), of mean logit differences LD."""
        values: Floats = (self.result.mean.logits[..., 0] - self.corrupted) / (self.clean - self.corrupted)
        return values

    @property
    def standard_errors(self) -> Floats:
        """[layer, unit, position]: the standard errors of LD, in the units of the scores."""
        errors: Floats = self.result.standard_error.logits[..., 0] / abs(self.clean - self.corrupted)
        return errors

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per place (needs pandas)."""
        return data_frame(long_form(self.axes, {"score": self.scores, "standard_error": self.standard_errors}))

    def save(self, path: "str | Path") -> None:
        """Save it as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        made = self.result.provenance
        files.write(self, path, {one.name: str(getattr(made, one.name)) for one in fields(made)})

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the scores, and save the figure if a path is given (needs matplotlib).

        If two axes vary, they become a heat map; otherwise the largest scores are bars with their standard errors.
        """
        title = (
            f"Share of the answer that each place restores, over {self.result.cases:,} pairs: logit difference "
            f"{self.clean:.2f} clean, {self.corrupted:.2f} corrupted"
        )
        long = [name for name, labels in self.axes.items() if len(labels) > 1]
        if len(long) == 2:
            grid = self.scores.reshape([len(self.axes[name]) for name in long])
            rows = [str(label) for label in self.axes[long[0]]]
            panel = plotting.Panel("", grid, rows, self.axes[long[1]], "RdBu", long[1], long[0])
            high = max(float(np.nanmax(np.abs(grid), initial=0.0)), 1e-6)
            return plotting.save(plotting.panels([panel], -high, high, title=title), path)
        flat = self.scores.ravel()
        some = np.sort(np.argsort(-np.abs(flat))[: plotting.MOST_ROWS])
        places = list(zip(*long_form(self.axes, {}).values(), strict=True))
        names = [
            ", ".join(f"{name} {label}" for name, label in zip(self.axes, places[i], strict=True) if name in long)
            for i in some
        ]
        drawn = plotting.bars(title, names, flat[some], errors=self.standard_errors.ravel()[some])
        return plotting.save(drawn, path)

    def __repr__(self) -> str:
        shape = " x ".join(f"{name} {len(labels)}" for name, labels in self.axes.items())
        numbers = f"{self.clean:.4g} clean, {self.corrupted:.4g} corrupted"
        return f"AveragePatching({self.result.cases:,} pairs, {shape}, {numbers})"
