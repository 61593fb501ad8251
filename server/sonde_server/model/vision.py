"""How families take an image among their tokens: what stands for it in a text, and how its positions lie over it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, NamedTuple

from ..questions.images import Grid


class Size(NamedTuple):
    """The width and height of an image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How many positions an image has: `before` that have no place in it, then a grid, row by row.

    The grid covers the part of the image between these edges, as shares of its width and height.
    """

    rows: int
    columns: int
    before: int = 0
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    @property
    def positions(self) -> int:
        """How many positions the image has."""
        return self.before + self.rows * self.columns

    def grid(self, first: int) -> Grid:
        """Where they lie if `first` is the first of them."""
        start = first + self.before
        positions = tuple(range(start, start + self.rows * self.columns))
        return Grid(self.rows, self.columns, positions, self.left, self.top, self.right, self.bottom)


# From an image's size and the checkpoint's image processor, before anything is computed.
Spreading = Callable[[Size, Any], Spread]


@dataclass(frozen=True, slots=True)
class Vision:
    """How a family takes an image among its tokens.

    token: what is at each of the image's positions. placeholder: the tokens that stand for the image in a text. Of
    these, the text of `named` is what is looked for, and `written` takes its place: texts, tokens, and once `token` for
    all of the image's positions. patches: how many positions the vision tower computes for each of the decoder's.
    sees_itself: whether the image's positions attend to one another. turned: whether rotary angles are of time, row and
    column.
    """

    token: int
    placeholder: tuple[int, ...]
    named: int
    written: tuple[str | int, ...]
    spread: Spreading
    patches: int = 1
    sees_itself: bool = False
    turned: bool = False


def square(side: int, before: int = 0) -> Spreading:
    """Images of one size: whatever the processor leaves of an image lies under `side` x `side` positions."""

    def spread(size: Size, processor: Any) -> Spread:
        return Spread(side, side, before, *_covered(size, processor))

    return spread


def _covered(size: Size, processor: Any) -> tuple[float, float, float, float]:
    """The edges of what an image processor leaves of an image, which it pads to a square or crops at the centre."""
    width, height = size
    if getattr(processor, "do_pad", False):
        side = max(size)
        left, top = (side - width) // 2, (side - height) // 2
        return -left / width, -top / height, (side - left) / width, (side - top) / height
    if not getattr(processor, "do_center_crop", False):
        return 0.0, 0.0, 1.0, 1.0
    if getattr(processor, "do_resize", False):
        width, height = _resized(size, processor.size)
    crop_width, crop_height = int(processor.crop_size["width"]), int(processor.crop_size["height"])
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left / width, top / height, (left + crop_width) / width, (top + crop_height) / height


def _resized(size: Size, wanted: Any) -> tuple[int, int]:
    """What transformers makes of an image's size: the shorter side has the wanted length, or both have theirs."""
    shortest = wanted.get("shortest_edge")
    if not shortest:
        return int(wanted["width"]), int(wanted["height"])
    short, long = min(size), max(size)
    other = int(shortest * long / short)
    return (int(shortest), other) if size.width <= size.height else (other, int(shortest))


def merged(size: Size, processor: Any) -> Spread:
    """Images of any shape: resized to whole cells of merged patches, between a least and a largest area (Qwen-VL)."""
    factor = int(processor.patch_size) * int(processor.merge_size)
    least, largest = (int(processor.size[name]) for name in ("shortest_edge", "longest_edge"))
    width, height = (round(side / factor) * factor for side in size)
    if width * height > largest:
        scale = (size.width * size.height / largest) ** 0.5
        width, height = (max(factor, floor(side / scale / factor) * factor) for side in size)
    elif width * height < least:
        scale = (least / (size.width * size.height)) ** 0.5
        width, height = (ceil(side * scale / factor) * factor for side in size)
    return Spread(height // factor, width // factor)
