"""What every answer has, whatever was asked: the prompt, the unchanged run, the cost and what made the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sonde.arrays import Axes, visible
from sonde.predictions import Prediction, Token

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes, known before it runs."""

    runs: int
    token_layers: int
    """Positions times blocks that are computed."""
    full_token_layers: int
    """What recomputing every run in full would take."""
    answer_bytes: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the numbers."""

    model: str
    revision: str
    dtype: str
    device: str
    attention: str
    """The attention implementations that these numbers may come from: "sdpa", "eager" or "sdpa+eager"."""
    server_version: str


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What every answer has."""

    tokens: tuple[Token, ...]
    """The prompt."""
    targets: tuple[Token, ...]
    """What was measured; without any in the request, the unchanged run's own top prediction."""
    position: int
    """Where the prediction was read."""
    cost: Cost
    provenance: Provenance
    dry_run: bool
    """Only `tokens`, `cost` and what was resolved are known; nothing was run."""
    _clean: Prediction | None

    @property
    def common(
        self,
    ) -> tuple[tuple[Token, ...], tuple[Token, ...], int, Cost, Provenance, bool, Prediction | None]:
        """These fields, for a result that adds its own."""
        return self.tokens, self.targets, self.position, self.cost, self.provenance, self.dry_run, self._clean

    @property
    def prediction(self) -> Prediction:
        """The unchanged run.

        Raises:
            ValueError: after a dry run.
        """
        if self._clean is None:
            message = "a dry run predicts nothing; it has the cost, and what the request was resolved to"
            raise ValueError(message)
        return self._clean

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The array that `np.asarray(result)` gives, after its axes: their names in order, each with its labels.

        Here the targets' log-probabilities in the unchanged run, [target]; a method's result has its own.

        Raises:
            ValueError: where there is no single array; the message says what there is.
        """
        return {"target": tuple(token.text for token in self.targets)}, self.prediction.log_probabilities

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        array = self.labelled()[1]
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError(f"an array of {array.dtype} cannot become {np.dtype(dtype)} without a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def to_dataframe(self) -> "pd.DataFrame":
        """The most probable tokens of the unchanged run, a row each (needs pandas)."""
        return self.prediction.to_dataframe()

    def save(self, path: "str | Path") -> None:
        """Save everything in it, as `.npz` or, with the package of that name, as `.safetensors`; see `sonde.load`.

        The arrays have the names of their fields, so that other programs can read them too.

        Raises:
            ValueError: for another ending.
            ImportError: without safetensors, with what to install.
        """
        from sonde import storage

        storage.save(self, path)

    def _repr_html_(self) -> str:
        from sonde import notebook

        return notebook.html(self)

    def token_labels(self, positions: Sequence[int] | None = None) -> tuple[str, ...]:
        """The prompt's tokens as axis labels."""
        chosen = range(len(self.tokens)) if positions is None else positions
        return tuple(visible(self.tokens[p].text) if 0 <= p < len(self.tokens) else str(p) for p in chosen)
