"""A circuit that was looked for over a dataset, with the curve of its faithfulness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sonde._answers.edges import Edges
from sonde._answers.findings import Finding
from sonde._answers.interventions import InterventionResult
from sonde._arrays import Axes, Floats

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class FoundCircuit(Finding):
    """Edges in the order of their importance, and how faithful the first ones are to the model."""

    edges: Edges
    """The edges, the most important one first."""
    result: InterventionResult
    """The runs of the circuits; means over the cases."""

    @property
    def faithfulness(self) -> Floats:
        """[size]: 0 where nothing is kept, 1 where the circuit does what the model does."""
        return self.result.faithfulness()

    def smallest(self, faithfulness: float = 0.9) -> Edges:
        """The first edges, as many as the smallest circuit of the curve has that is at least this faithful.

        Raises:
            ValueError: if none of them is.
        """
        sizes = [int(str(size)) for size in self.result.axes["size"]]
        enough = [size for size, value in zip(sizes, self.faithfulness, strict=True) if value >= faithfulness]
        if not enough:
            raise ValueError(f"expected a circuit of faithfulness {faithfulness}, got {self.faithfulness.max():.3g}")
        return self.edges[: min(enough)]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The sizes and the faithfulness of each."""
        return {"size": self.result.axes["size"]}, self.faithfulness

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the faithfulness by size, and save the figure if a path is given (needs matplotlib)."""
        return self.result.plot(path)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {"size": list(self.result.axes["size"]), "faithfulness": self.faithfulness.tolist()}

    def __str__(self) -> str:
        pairs = zip(self.result.axes["size"], self.faithfulness, strict=True)
        return "faithfulness by size: " + ", ".join(f"{size}: {value:.2f}" for size, value in pairs)


Method = Literal["eap", "eap-ig", "acdc"]
