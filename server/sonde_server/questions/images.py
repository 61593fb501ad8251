"""Images of prompts: where one lies among the tokens, what its positions see, and where they lie in the image."""

from dataclasses import dataclass
from typing import NamedTuple

SPAN = "image"
"""The span of a prompt that its image is."""


class Sight(NamedTuple):
    """Positions from `first` to before `stop` that attend to one another, later ones too; others see what is before."""

    first: int
    stop: int

    def within(self, position: int) -> bool:
        """Whether a position is one of these."""
        return self.first <= position < self.stop

    def begins(self, position: int) -> int:
        """The first position that sees this one."""
        return self.first if self.within(position) else position

    def horizon(self, position: int) -> int:
        """The last position that this one sees."""
        return self.stop - 1 if self.within(position) else position


CAUSAL = Sight(0, 0)
"""Every position sees itself and those before it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Positions over a part of an image, row by row. The edges of the part are shares of its width and height."""

    rows: int
    columns: int
    positions: tuple[int, ...]
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


@dataclass(frozen=True, slots=True)
class Turned:
    """Coordinates of positions for a rotation by time, row and column (Wang et al. 2024, arXiv 2409.12191).

    The image, at positions from `first` on, takes `rows` x `columns` of them. What is behind it goes on at one more
    than the largest coordinate.
    """

    first: int
    rows: int
    columns: int

    def coordinates(self, position: int) -> tuple[int, int, int]:
        """Time, row and column of a position."""
        inside = position - self.first
        if 0 <= inside < self.rows * self.columns:
            row, column = divmod(inside, self.columns)
            return self.first, self.first + row, self.first + column
        moved = max(self.rows, self.columns) - self.rows * self.columns if inside >= 0 else 0
        return (position + moved,) * 3


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where an image lies in a prompt. `grids`: none where its positions have no place in it."""

    positions: tuple[int, ...]
    grids: tuple[Grid, ...] = ()
    sight: Sight = CAUSAL
    turned: Turned | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image of a prompt. It is kept as its file, since what the model takes of it is many times as large.

    digest: of its pixels. bytes: about how much memory it takes while it is prepared for the model. patches: how many
    positions the model's vision tower computes. processor: what prepares it.
    """

    digest: bytes
    file: bytes
    bytes: int
    patches: int
    arrangement: Arrangement
    processor: str


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How the hosted model reads images, for GetModel."""

    placeholder: str
    token: int
    fewest: int
    most: int
    sees_itself: bool


def arrangement_of(image: Image | None) -> Arrangement | None:
    """Where an image lies, if there is one."""
    return None if image is None else image.arrangement


def sight_of(image: Image | None) -> Sight:
    """What the positions of a prompt see that has this image."""
    return CAUSAL if image is None else image.arrangement.sight
