"""The average of causal traces by kind of token: figure 2 of Meng et al. 2022 (arXiv 2202.05262)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sonde._answers import files
from sonde._answers.reduced import Reduced
from sonde._arrays import Booleans, Floats, Integers, Label
from sonde._ask.names import ComponentName
from sonde._show import plotting
from sonde._show.palette import look

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class AverageTrace:
    """The average indirect effect of restoring each kind of token at each layer, by component."""

    result: Reduced[Any]
    """The statistics over the traced cases, as `client.trace(..., reduce="mean")` returns them."""
    used: Booleans
    """[case]: whether the model predicted the target; other cases are not traced."""

    @property
    def effects(self) -> Mapping[ComponentName, Floats]:
        """[class, layer]: restored minus corrupted probability, averaged over tokens; NaN if there are none."""
        mean = self.result.mean
        return {name: values[..., 0] - np.float32(self.corrupted) for name, values in mean.restored.items()}

    @property
    def deviations(self) -> Mapping[ComponentName, Floats]:
        """[class, layer]: the standard deviation of the restored probability over tokens."""
        return {name: values[..., 0] for name, values in self.result.deviation.restored.items()}

    @property
    def standard_errors(self) -> Mapping[ComponentName, Floats]:
        """[class, layer]: the standard error of the mean restored probability."""
        return {name: values[..., 0] for name, values in self.result.standard_error.restored.items()}

    @property
    def layers(self) -> Mapping[ComponentName, tuple[Label, ...]]:
        """The labels of the layer axis."""
        return {name: axes["layer"] for name, axes in self.result.mean.axes.items()}

    @property
    def counts(self) -> Integers:
        """[class]: the number of tokens."""
        grid = next(iter(self.result.counts.restored.values()))
        numbers: Integers = np.nan_to_num(grid[:, 0, 0]).astype(np.int64)
        return numbers

    @property
    def clean(self) -> float:
        """The mean probability of the targets in the unchanged runs of the traced cases."""
        return float(self.result.mean.clean[0])

    @property
    def corrupted(self) -> float:
        """The mean probability in the corrupted runs; `clean` minus this is the average total effect."""
        return float(self.result.mean.corrupted[0])

    def __repr__(self) -> str:
        used = f"{int(self.used.sum()):,} of {len(self.used):,} cases"
        return f"AverageTrace({used}, {self.clean:.3f} clean, {self.corrupted:.3f} corrupted)"

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per component, class and layer (needs pandas)."""
        return self.result.to_dataframe()

    def save(self, path: "str | Path") -> None:
        """Save it as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        made = self.result.provenance
        files.write(self, path, {one.name: str(getattr(made, one.name)) for one in fields(made)})

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw figure 2 of the paper, one panel per component, and save it if a path is given (needs matplotlib).

        All panels share one scale, which begins at zero.
        """
        names = self.result.mean.row_labels(next(iter(self.layers)))
        labels = [f"{name} ({count:,})" for name, count in zip(names, self.counts, strict=True)]
        panels = [
            plotting.Panel(
                look(name).title,
                effects,
                labels,
                self.layers[name],
                look(name).colour_map,
                "restored layer, or the centre of several",
            )
            for name, effects in self.effects.items()
        ]
        high = max((float(np.nanmax(effects, initial=0.0)) for effects in self.effects.values()), default=0.0)
        title = (
            f"Average indirect effect over {int(self.used.sum()):,} prompts: "
            f"{self.clean:.3f} clean, {self.corrupted:.3f} corrupted"
        )
        return plotting.save(plotting.panels(panels, 0.0, max(high, 1e-6), title=title), path)
