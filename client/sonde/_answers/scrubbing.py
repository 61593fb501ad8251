"""What a hypothesis recovers of a prediction, by causal scrubbing."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sonde._answers.findings import Finding
from sonde._arrays import Axes, Floats, Integers
from sonde._show import plotting
from sonde._show.graphs import Dot, Line, graph

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

_NORMAL: Final = 1.96
"""A normal variable is within this many deviations of its mean in 95 of 100 cases."""


@dataclass(frozen=True, eq=False)
class ScrubbedNode:
    """A node of the hypothesis, for the picture."""

    name: str
    parent: int
    """The number of the node that it goes into; -1 for the prediction."""
    direct: bool
    classes: int
    """How many different labels it has; 0 without labels."""
    other_classes: int
    """How many different labels there are for what is not claimed of it; 0 without labels."""
    forced: int
    """How many examples have a label that no other has, so that they can only be drawn for themselves."""


@dataclass(frozen=True, eq=False)
class ScrubbingResult(Finding):
    """The measure of every reference with the hypothesis, without it, and in the unchanged run (Chan et al. 2022)."""

    scrubbed: Floats
    """[reference, draw]: the measure in each scrubbed run."""
    clean: Floats
    """[reference]: in the unchanged run."""
    random: Floats
    """[reference]: the mean over all examples' unchanged runs, which is what claiming nothing comes to."""
    draws: Integers
    """[reference, draw, node, 2]: the examples that were drawn; give them to `sonde.CausalScrubbing` to replay them."""
    references: tuple[int, ...]
    """The numbers of the references among the cases."""
    nodes: tuple[ScrubbedNode, ...]
    measure: str
    """What was measured."""

    @property
    def means(self) -> Floats:
        """[reference]: the mean of its scrubbed runs."""
        means: Floats = self.scrubbed.mean(axis=1)
        return means

    @property
    def recovered(self) -> float:
        """Which part of what is lost without any claim the hypothesis recovers. It can leave 0 to 1.

        Raises:
            ValueError: if the unchanged runs and those of random examples measure the same.
        """
        lost = float((self.clean - self.random).sum())
        if lost == 0:
            raise ValueError("expected examples whose predictions differ, got the same measure from all of them")
        return float((self.means - self.random).sum()) / lost

    @property
    def standard_error(self) -> float:
        """Of `recovered`, with the references as independent (delta method). NaN for a single one."""
        count = len(self.clean)
        if count < 2:
            return float("nan")
        away = (self.means - self.random) - self.recovered * (self.clean - self.random)
        spread = np.sqrt(count / (count - 1) * float((away**2).sum()))
        return float(spread / abs(float((self.clean - self.random).sum())))

    @property
    def interval(self) -> tuple[float, float]:
        """`recovered` less and plus 1.96 standard errors."""
        half = _NORMAL * self.standard_error
        return self.recovered - half, self.recovered + half

    @property
    def sampling_error(self) -> float:
        """The part of the standard error of the mean measure that more draws would make smaller."""
        draws = self.scrubbed.shape[1]
        if draws < 2:
            return float("nan")
        return float(np.sqrt((self.scrubbed.var(axis=1, ddof=1) / draws).sum()) / len(self.clean))

    @property
    def worst(self) -> int:
        """The reference that loses the most, by its number among the cases."""
        return self.references[int(np.argmax(self.clean - self.means))]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """References, draws, and the measure in each scrubbed run."""
        return {"reference": self.references, "draw": tuple(range(self.scrubbed.shape[1]))}, self.scrubbed

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        count, draws = self.scrubbed.shape
        return {
            "reference": np.repeat(np.array(self.references), draws).tolist(),
            "draw": list(range(draws)) * count,
            "scrubbed": self.scrubbed.reshape(-1).tolist(),
            "clean": np.repeat(self.clean, draws).tolist(),
            "random": np.repeat(self.random, draws).tolist(),
        }

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the tree of the hypothesis, with what it recovers, and save the figure if a path is given."""
        title = f"{self.measure}: {self._recovery('.0%')}"
        title += f"\nclean {self.clean.mean():.3g}, scrubbed {self.means.mean():.3g}, all resampled "
        title += f"{self.random.mean():.3g}"
        legend = (
            ("seen by all that comes after", "by its parent alone") if any(one.direct for one in self.nodes) else ()
        )
        return plotting.save(graph(title, *self._tree(), legend=legend), path)

    def _tree(self) -> tuple[list[Dot], list[Line]]:
        depths: list[int] = []
        for node in self.nodes:
            depths.append(0 if node.parent < 0 else depths[node.parent] + 1)
        at: dict[int, float] = {}
        leaves = 0.0

        def place(number: int) -> float:
            nonlocal leaves
            below = [place(child) for child, node in enumerate(self.nodes) if node.parent == number]
            if not below:
                leaves += 2.2
            at[number] = sum(below) / len(below) if below else leaves
            return at[number]

        place(0)
        dots = [Dot(at[number], -2.6 * depth, self._words(self.nodes[number])) for number, depth in enumerate(depths)]
        lines = [Line(n, node.parent, 0.5, int(node.direct)) for n, node in enumerate(self.nodes) if node.parent >= 0]
        return dots, lines

    @staticmethod
    def _words(node: ScrubbedNode) -> str:
        claimed = f"{node.classes} labels" if node.classes else "any example"
        if node.parent < 0:
            return f"{node.name}\nall else: " + (
                f"{node.other_classes} labels" if node.other_classes else "any example"
            )
        others = f"\nall else: {node.other_classes} labels" if node.other_classes else ""
        return f"{node.name}\n{claimed}" + (f", {node.forced} alone" if node.forced else "") + others

    def __str__(self) -> str:
        return (
            f"{self._recovery('.2f')}: clean {self.clean.mean():.4g}, scrubbed "
            f"{self.means.mean():.4g}, all resampled {self.random.mean():.4g} "
            f"({len(self.clean)} references x {self.scrubbed.shape[1]} draws)"
        )

    def _recovery(self, form: str) -> str:
        """What is recovered, in words, with its interval where there is one."""
        if not (self.clean - self.random).sum():
            return "recovered undefined"
        if len(self.clean) < 2:
            return f"recovered {self.recovered:{form}}"
        low, high = self.interval
        return f"recovered {self.recovered:{form}} [{low:{form}}, {high:{form}}]"

    def __repr__(self) -> str:
        return f"ScrubbingResult({self})"


def classes_of(labels: Sequence[Hashable]) -> tuple[int, int]:
    """How many different labels there are, and how many of them one example alone has."""
    counts = Counter(labels)
    return len(counts), sum(count == 1 for count in counts.values())
