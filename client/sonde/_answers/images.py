"""Where the image of a prompt lies among its positions, and numbers by position laid over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """A grid of positions over an image, or over a part of it.

    The edges are shares of the image's width and height. They lie outside of 0 to 1 where the image was padded.
    """

    rows: int
    columns: int
    positions: tuple[int, ...]
    """The positions, row by row."""
    left: float
    top: float
    right: float
    bottom: float

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom

    def over_image(self, values: npt.ArrayLike, positions: Sequence[Any] | None = None) -> npt.NDArray[Any]:
        """Lay numbers by position over the image.

        Args:
            values: [position, ...]
            positions: which positions these are; None: all of the prompt, in their order.

        Returns:
            [row, column, ...]; NaN where there is no number for a position.

        Raises:
            ValueError: if there are not as many positions as values.
        """
        found = np.asarray(values)
        known = range(len(found)) if positions is None else positions
        if len(known) != len(found):
            raise ValueError(f"expected a position for each of {len(found)} values, got {len(known)}")
        row_of = {position: row for row, position in enumerate(known)}
        laid = np.full((len(self.positions), *found.shape[1:]), np.nan, np.result_type(found.dtype, np.float32))
        for place, position in enumerate(self.positions):
            if position in row_of:
                laid[place] = found[row_of[position]]
        return laid.reshape(self.rows, self.columns, *found.shape[1:])
