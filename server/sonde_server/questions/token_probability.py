"""How does a prediction form?"""

from dataclasses import dataclass

from .answers import Answer, Floats, Integers
from .costs import FLOAT, Cost, state_bytes
from .extents import Restarts
from .places import Sized
from .prompts import Asked, Metric


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """The target read at every depth, and optionally the gradient of its final value.

    `rows`: the positions where it is read; None: the one that is asked.
    """

    gradient_norms: bool
    metric: Metric
    rows: tuple[tuple[int, ...], ...] | None = None

    def read_at(self, asked: Asked) -> tuple[tuple[int, ...], ...]:
        """The positions where the stream is read, row by row."""
        return ((asked.position,),) if self.rows is None else self.rows

    @property
    def pairs(self) -> bool:
        """Neither scores nor patterns are read or changed."""
        return False

    def runs(self, asked: Asked, _model: Sized) -> int:
        """The unchanged run; for gradients each block once more, and once backwards for each target."""
        return 2 + asked.columns if self.gradient_norms else 1

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """At every depth of each position three numbers for each target, the divergence, the top tokens; the norms."""
        numbers = sum(map(len, self.read_at(asked))) * (3 * asked.columns + 1 + 2 * asked.top_k)
        if self.gradient_norms:
            numbers += asked.tokens * asked.columns
        return FLOAT * (model.layers + 1) * numbers

    def restarts(self, _asked: Asked, _model: Sized) -> Restarts:
        """No run restarts from what the unchanged one keeps."""
        return {}

    def cost(self, asked: Asked, model: Sized, _restarts: Restarts) -> Cost:
        """The cost before anything runs. Gradients take the positions up to the one that is read."""
        runs, full = self.runs(asked, model), asked.tokens * model.layers
        work = full + (runs - 1) * (asked.position + 1) * model.layers
        return Cost(runs, work, runs * full, self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """The unchanged run, and what compares every target with the vocabulary at every depth for its rank.

        Positions are read one at a time.
        """
        compared = asked.columns + 3 * FLOAT
        return state_bytes(asked.tokens, model) + (model.layers + 1) * model.vocabulary_size * compared


@dataclass(frozen=True, slots=True, eq=False)
class LayerReadings(Answer):
    """The target read at every depth of one position; gradient norms are [depths, positions, targets], or None.

    The gradient is that of the request's own position; where several are read, it comes with the first of them. In a
    reduction `position` is a row, `count` how many values it is over, ranks are their mean or deviation, and
    `probabilities` [depths, targets] is set.
    """

    depths: tuple[int, ...]
    log_probabilities: Floats
    logits: Floats
    ranks: Integers | Floats
    kl_divergences: Floats
    top_tokens: Integers
    top_log_probabilities: Floats
    gradient_norms: Floats | None
    positions: tuple[int, ...]
    position: int = 0
    count: int = 0
    probabilities: Floats | None = None
