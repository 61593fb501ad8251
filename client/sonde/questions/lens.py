"""The logit lens at each position: the model's prediction if it ended after each block (nostalgebraist 2020).

https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from dataclasses import dataclass

import numpy as np

from sonde._answers.predictions import Token, TokenPrediction
from sonde._arrays import Floats, visible
from sonde._ask.indices import Indices, indices
from sonde._ask.named import span
from sonde._ask.prompts import PromptLike
from sonde._methods.token_probability import TokenProbability
from sonde._show.display import html_table
from sonde.client import Client


@dataclass(frozen=True, eq=False, repr=False)
class LensTable:
    """The most probable next token after each block, at each position."""

    tokens: tuple[Token, ...]
    """The prompt's tokens at `positions`."""
    positions: tuple[int, ...]
    depths: tuple[int, ...]
    """0 is before the first block; k is after k blocks."""
    cells: tuple[tuple[TokenPrediction, ...], ...]
    """The most probable tokens, by depth and then by position."""

    @property
    def probabilities(self) -> Floats:
        """[depth, position]: the probability of the token in each cell."""
        return np.array([[cell.probability for cell in row] for row in self.cells], np.float32)

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
        return html_table("most probable next token", self._header(), self.rows())


def logit_lens(client: Client, prompt: PromptLike, *, positions: Indices = None) -> LensTable:
    """Find the most probable next token at each depth and position.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        positions: the positions to read; None means all.
    """
    asked = indices(positions, "positions")
    result = client.trace(prompt, method=TokenProbability(positions=asked or span("")), top_k=1)
    count = len(result.tokens)
    chosen = [p % count for p in asked] or list(range(count))
    results, depths = [result.by_position[p] for p in chosen], result.depths
    cells = tuple(tuple(result.top_at(depth, 1)[0] for result in results) for depth in depths)
    return LensTable(tuple(result.tokens[p] for p in chosen), tuple(chosen), depths, cells)
