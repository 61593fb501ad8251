"""The result of a causal trace that is averaged over prompts by kind of token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sonde._answers.findings import Finding
from sonde._answers.results import Provenance
from sonde._arrays import Axes, Booleans, Floats, Integers, Label, common_array, long_form
from sonde._ask.names import ComponentName
from sonde._show import plotting
from sonde._show.palette import look

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

TOKEN_CLASSES: Final = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, eq=False)
class AverageTrace(Finding):
    """The average indirect effect of restoring each kind of token at each layer, by component."""

    effects: Mapping[ComponentName, Floats]
    """[class, layer]: restored minus corrupted probability, averaged over tokens; NaN if no prompt has such a token."""
    deviations: Mapping[ComponentName, Floats]
    """[class, layer]: the standard deviation over tokens."""
    layers: Mapping[ComponentName, tuple[Label, ...]]
    """The labels of the layer axis."""
    counts: Integers
    """[class]: the number of tokens."""
    used: Booleans
    """[case]: whether the model predicted the target; other cases are not traced."""
    clean: float
    """The mean probability of the targets in the unchanged runs of the traced cases."""
    corrupted: float
    """The mean probability in the corrupted runs; `clean` minus this is the average total effect."""
    provenance: Provenance | None = None

    @property
    def axes(self) -> Mapping[ComponentName, Axes]:
        """The axes of `effects` by component, with their labels."""
        return {name: {"class": TOKEN_CLASSES, "layer": labels} for name, labels in self.layers.items()}

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The effects; of several components, stacked along a first axis `component`."""
        return common_array(self.effects, self.axes, "effects")

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        table: dict[str, list[Any]] = {}
        for name, effects in self.effects.items():
            columns = {"effect": effects, "deviation": self.deviations[name]}
            part = long_form(self.axes[name], columns)
            count = np.broadcast_to(self.counts[:, np.newaxis], effects.shape).reshape(-1).tolist()
            for column, values in {"component": [name] * effects.size, **part, "count": count}.items():
                table.setdefault(column, []).extend(values)
        return table

    def _provenance(self) -> Provenance | None:
        return self.provenance

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw figure 2 of the paper, one panel per component, and save it if a path is given (needs matplotlib).

        All panels share one scale, which begins at zero.
        """
        labels = [f"{name} ({count:,})" for name, count in zip(TOKEN_CLASSES, self.counts, strict=True)]
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
