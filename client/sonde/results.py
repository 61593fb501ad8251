"""What every answer has, whatever was asked: the prompt, the unchanged run, the cost and what made the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from sonde.arrays import visible
from sonde.predictions import Prediction, Token


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
    """The attention implementation used for these numbers."""
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

    def _repr_html_(self) -> str:
        from sonde import notebook

        return notebook.html(self)

    def token_labels(self, positions: Sequence[int] | None = None) -> tuple[str, ...]:
        """The prompt's tokens as axis labels."""
        chosen = range(len(self.tokens)) if positions is None else positions
        return tuple(visible(self.tokens[p].text) if 0 <= p < len(self.tokens) else str(p) for p in chosen)
