"""The results of the ready-made questions (`sonde.questions`): what is drawn of them, and how they are saved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sonde._answers import files
from sonde._answers.interventions import InterventionResult
from sonde._answers.predictions import Token, TokenPrediction
from sonde._answers.requests import Request
from sonde._answers.results import Provenance
from sonde._arrays import Axes, Floats, Label, data_frame, largest, long_form, visible
from sonde._show import plotting
from sonde._show.display import page, sortable_table, token_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LISTED: Final = 50


class Finding(ABC):
    """What the results of questions share: tables, figures and files."""

    @abstractmethod
    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The axes (names in order, each with its labels) and the array that they describe."""

    @abstractmethod
    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw it, and save the figure if a path is given (needs matplotlib)."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The columns of the table."""

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per entry of the array (needs pandas)."""
        return data_frame(self._columns())

    def save(self, path: "str | Path") -> None:
        """Save it as `.npz`, or as `.safetensors` if that package is installed; see `sonde.load`.

        Raises:
            ValueError: for any other suffix.
            ImportError: if safetensors is not installed; the message says how to install it.
        """
        made = self._provenance()
        words = {} if made is None else {one.name: str(getattr(made, one.name)) for one in fields(made)}
        files.write(self, path, words)

    def _provenance(self) -> Provenance | None:
        """Where the numbers come from, if it is known."""
        result = getattr(self, "result", None)
        return result.provenance if isinstance(result, InterventionResult) else None

    def _repr_html_(self) -> str:
        columns = self._columns()
        rows = list(zip(*columns.values(), strict=True))[:_MOST_LISTED]
        return page(sortable_table(type(self).__name__, list(columns), rows))


@dataclass(frozen=True, eq=False)
class LogitAttribution(Finding):
    """A logit, or a difference of logits, as the sum of `contributions` and the `bias` of norm and unembedding."""

    names: tuple[str, ...]
    """The names of the parts, such as `embedding`, `attention 3`, `head 3:5` and `mlp 3`."""
    contributions: Floats
    """[part], in the order of `names`."""
    bias: float
    logit: float
    """The logit that the model computes."""

    def strongest(self, count: int = 10) -> list[tuple[str, float]]:
        """The parts with the largest contributions, in either direction, the largest first."""
        order = np.argsort(-np.abs(self.contributions))[:count]
        return [(self.names[part], float(self.contributions[part])) for part in order]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The parts and their contributions."""
        return {"part": self.names}, self.contributions

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {"part": list(self.names), "contribution": self.contributions.tolist()}

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the contributions as bars, if there are many only the largest (needs matplotlib)."""
        shown = sorted(index for (index,) in largest(self.contributions, plotting.MOST_ROWS))
        title = (
            f"Direct contribution of each part to the logit, {self.logit:.2f} (bias {round(self.bias, 2) + 0.0:.2f})"
        )
        if len(shown) < len(self.names):
            title += f"\n(the {len(shown)} largest of {len(self.names):,})"
        labels = [self.names[index] for index in shown]
        drawn = plotting.bars(title, labels, self.contributions[shown], across="contribution to the logit")
        return plotting.save(drawn, path)


@dataclass(frozen=True, eq=False)
class AttentionKnockout(Finding):
    """The effect on the target of blocking attention around each layer."""

    layers: tuple[int, ...]
    """The centres of the windows."""
    changes: Floats
    """[layer]: the change in the target's probability, in percent of its probability in the unchanged run."""
    result: InterventionResult
    """The full result of the changed runs."""

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The layers and the changes."""
        return {"layer": self.layers}, self.changes

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {"layer": list(self.layers), "change_percent": self.changes.tolist()}

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the change by layer, as figure 2 of Geva et al. 2023 (needs matplotlib)."""
        word = visible(self.result.targets[0].text).strip()
        title = f"Change of p({word}) when attention is blocked around each layer"
        drawn = plotting.lines(
            title,
            self.layers,
            {word: self.changes},
            across="centre of the blocked layers",
            down="change of the probability (%)",
            zero=True,
        )
        return plotting.save(drawn, path)


@dataclass(frozen=True, eq=False)
class PathPatching(Finding):
    """How much each head matters along some paths: the change of the logit difference when it is patched there."""

    effects: Floats
    """[layer, head]"""
    axes: Axes
    """The axes of `effects`, with their labels: layer, unit."""
    clean: float
    """The logit difference in the unchanged run; the mean over the pairs."""
    result: InterventionResult
    """The runs; means over the pairs."""

    def strongest(self, count: int = 10) -> list[tuple[Label, Label, float]]:
        """Layer, head and effect of the heads with the largest effects, in either direction, the largest first."""
        layers, heads = self.axes["layer"], self.axes["unit"]
        order = np.argsort(-np.abs(self.effects), axis=None, kind="stable")[:count]
        places = zip(*np.unravel_index(order, self.effects.shape), strict=True)
        return [(layers[row], heads[column], float(self.effects[row, column])) for row, column in places]

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The axes and `effects`."""
        return self.axes, self.effects

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the effects as a heat map, and save the figure if a path is given (needs matplotlib)."""
        title = f"Change of the logit difference ({self.clean:.2f} unchanged) by path patching"
        return plotting.save(self.result.drawn(title, self.effects[:, :, None]), path)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return long_form(self.axes, {"effect": self.effects})


@dataclass(frozen=True, eq=False)
class ActivationPatching(Finding):
    """How much of the clean answer each place restores: 0 is the corrupted run, 1 is the clean run."""

    scores: Floats
    """[layer, unit, position]"""
    axes: Axes
    """The axes of `scores`, with their labels."""
    clean: float
    """The logit difference of the clean prompt."""
    corrupted: float
    """The logit difference of the corrupted prompt."""
    result: InterventionResult
    """The full result of the patched runs."""

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """`axes` and `scores`."""
        return self.axes, self.scores

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return long_form(self.axes, {"score": self.scores})

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the scores: a heat map over two axes that vary, otherwise bars (needs matplotlib)."""
        title = "Share of the clean answer that patching each place restores (0: corrupted, 1: clean)"
        return plotting.save(self.result.drawn(title, self.scores, across="share restored"), path)


@dataclass(frozen=True, eq=False)
class SteeringStrengths(Finding):
    """What adding a direction does, by the factor with which it is added."""

    strengths: tuple[float, ...]
    """The factors, in the order of the request."""
    effects: Floats
    """[strength, target]: the log-probability minus that in the unchanged run."""
    result: InterventionResult
    """The full result: one run for each strength, with what it generated."""

    def __repr__(self) -> str:
        words = ", ".join(f"{strength:g}" for strength in self.strengths)
        targets = ", ".join(repr(visible(token.text)) for token in self.result.targets)
        return f"SteeringStrengths(strengths {words}; effects on {targets})"

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """Strengths (as text) and targets, and the effects."""
        targets = tuple(token.text for token in self.result.targets)
        return {"strength": tuple(f"{strength:g}" for strength in self.strengths), "target": targets}, self.effects

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        result, targets = self.result, self.result.targets
        table: dict[str, list[Any]] = {
            "strength": [strength for strength in self.strengths for _ in targets],
            "target": [token.text for _ in self.strengths for token in targets],
            "effect": self.effects.reshape(-1).tolist(),
            "probability": result.probabilities.reshape(-1).tolist(),
        }
        texts = [None if said is None else said.text for said in result.generated]
        return {**table, "text": [text for text in texts for _ in targets]} if texts else table

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the effect against the strength, a line for each target (needs matplotlib)."""
        order = np.argsort(self.strengths)
        words = [visible(token.text).strip() for token in self.result.targets]
        drawn = plotting.lines(
            f"What adding the direction does to {', '.join(f'“{word}”' for word in words[:3])}, by its strength",
            [self.strengths[index] for index in order],
            {word: self.effects[order, number] for number, word in enumerate(words)},
            across="strength (factor of the direction)",
            down="change of log p (nats)",
            zero=True,
        )
        return plotting.save(drawn, path)


@dataclass(frozen=True, eq=False, repr=False)
class LensTable(Finding):
    """The most probable next token after each block, at each position."""

    tokens: tuple[Token, ...]
    """The prompt's tokens at `positions`."""
    positions: tuple[int, ...]
    depths: tuple[int, ...]
    """0 is before the first block; k is after k blocks."""
    cells: tuple[tuple[TokenPrediction, ...], ...]
    """The most probable tokens, by depth and then by position."""
    provenance: Provenance | None = None
    request: Request | None = None
    """What was asked."""

    @property
    def probabilities(self) -> Floats:
        """[depth, position]: the probability of the token in each cell."""
        return np.array([[cell.probability for cell in row] for row in self.cells], np.float32)

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """Depths and positions, and the probabilities."""
        return {"depth": self.depths, "position": self.positions}, self.probabilities

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        table = long_form(self.labelled()[0], {"probability": self.probabilities})
        flat = [cell for row in self.cells for cell in row]
        prompt = [token.text for _ in self.depths for token in self.tokens]
        said: dict[str, Sequence[Any]] = {
            "token": prompt,
            "top_token": [cell.text for cell in flat],
            "top_token_id": [cell.id for cell in flat],
        }
        return {"depth": table["depth"], "position": table["position"], **said, "probability": table["probability"]}

    def _provenance(self) -> Provenance | None:
        return self.provenance

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the table: the top token in each cell, coloured by its probability, the last depth on top."""
        texts = [[visible(cell.text) for cell in row] for row in self.cells]
        columns = [visible(token.text) for token in self.tokens]
        title = "The most probable next token at each position, read after each block"
        rows: list[Label] = [*self.depths]
        drawn = plotting.token_table(
            title, rows, columns, texts, self.probabilities, down="after block (0: embeddings)", across="prompt"
        )
        return plotting.save(drawn, path)

    def rows(self) -> list[list[str]]:
        """One row per depth, the last depth first, for a table."""
        shown = [
            [str(depth), *(visible(cell.text) for cell in row)]
            for depth, row in zip(self.depths, self.cells, strict=True)
        ]
        return shown[::-1]

    def _header(self) -> list[str]:
        return ["after block", *(visible(token.text) for token in self.tokens)]

    def __str__(self) -> str:
        lines = [self._header(), *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def __repr__(self) -> str:
        return f"LensTable({len(self.depths)} depths x {len(self.positions)} positions)"

    def _repr_html_(self) -> str:
        return page(self.html())

    def html(self) -> str:
        """The table alone, as a part of a page."""
        return token_table(self._header(), self.rows(), self.probabilities[::-1])
