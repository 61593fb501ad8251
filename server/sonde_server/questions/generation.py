"""What does the model go on to say?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generation:
    """Every run is continued by up to `max_new_tokens`; at temperature 0 by the most probable ones."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1
    ignore_end_token: bool = False

    @property
    def answer_bytes(self) -> int:
        """About the size of one run's tokens in an answer, at most: id, the text twice, and their framing."""
        return 48 * self.max_new_tokens

    def work(self, tokens: int, layers: int) -> tuple[int, int]:
        """Positions x blocks for the tokens after the first of one run: over the kept keys, and recomputed in full.

        A run that meets an end token takes less.
        """
        steps = self.max_new_tokens - 1
        return steps * layers, layers * sum(tokens + step for step in range(1, steps + 1))
