"""How families take an image among their tokens: what stands for it in a text, and how its positions lie over it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf, prod
from typing import Any, NamedTuple

from ..questions.images import Grid

# Idefics3 makes no side longer than this.
MOST_PIXELS = 4096


class Size(NamedTuple):
    """The width and height of an image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Lying:
    """A grid over a part of an image: which of the image's positions are in it, row by row.

    The edges of the part are shares of the image's width and height.
    """

    rows: int
    columns: int
    places: Sequence[int]
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def over(self, positions: Sequence[int]) -> Grid:
        """The grid, if these are the image's positions in the prompt."""
        where = tuple(positions[place] for place in self.places)
        return Grid(self.rows, self.columns, where, self.left, self.top, self.right, self.bottom)


@dataclass(frozen=True, slots=True)
class Spread:
    """How many positions an image has, and how they lie over it.

    tiles: rows and columns of the tiles that an image is cut into; None where images are not.
    """

    positions: int
    grids: tuple[Lying, ...]
    tiles: tuple[int, int] | None = None


# From an image's size and the checkpoint's image processor, before anything is computed.
Spreading = Callable[[Size, Any], Spread]
# From the same to how many rows and columns of tiles an image is cut into; none where it is a single one.
Cutting = Callable[[Size, Any], tuple[int, int]]
# What is written in a text for an image: texts and tokens, among them that of each position.
Writing = Callable[[Spread], Iterable[str | int]]


@dataclass(frozen=True, slots=True)
class Vision:
    """How a family takes an image among its tokens.

    token: what is at each of the image's positions. placeholder: the tokens that stand for the image in a text. Of
    these, the text of `named` is what is looked for, and what is `written` takes its place. patches: how many positions
    the vision tower computes for each of the decoder's. sees_itself: whether the image's positions attend to one
    another. turned: whether rotary angles are of time, row and column. settings: what the image processor is given
    beside an image.
    """

    token: int
    placeholder: tuple[int, ...]
    named: int
    written: Writing
    spread: Spreading
    patches: int = 1
    sees_itself: bool = False
    turned: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Whether an image's positions must follow one another."""
        return self.sees_itself or self.turned


def repeated(token: int, before: Sequence[str | int] = (), after: Sequence[str | int] = ()) -> Writing:
    """The token of each position, one after another, between others."""
    return lambda spread: (*before, *[token] * spread.positions, *after)


def square(side: int, before: int = 0) -> Spreading:
    """Images of one size: what the processor leaves of an image lies under `side` x `side` positions.

    `before`: positions that come first and have no place in the image.
    """

    def spread(size: Size, processor: Any) -> Spread:
        count = before + side * side
        return Spread(count, (Lying(side, side, range(before, count), *_covered(size, processor)),))

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
    rows, columns = height // factor, width // factor
    return Spread(rows * columns, (Lying(rows, columns, range(rows * columns)),))


def tiled(side: int, cut: Cutting) -> Spreading:
    """Images that are cut into square tiles, with the whole image as one more behind them.

    Each has `side` x `side` positions. Those of all tiles are one grid, and those of the whole are another.
    """

    def spread(size: Size, processor: Any) -> Spread:
        rows, columns = cut(size, processor)
        each, tiles = side * side, rows * columns
        whole = Lying(side, side, range(tiles * each, (tiles + 1) * each))
        if not tiles:
            return Spread(each, (whole,), (0, 0))
        places = [
            ((down // side) * columns + across // side) * each + (down % side) * side + across % side
            for down in range(rows * side)
            for across in range(columns * side)
        ]
        return Spread((tiles + 1) * each, (Lying(rows * side, columns * side, places), whole), (rows, columns))

    return spread


def by_size(size: Size, processor: Any) -> tuple[int, int]:
    """As many tiles as an image fills that is resized to a longest side (Idefics3)."""
    if not processor.do_image_splitting:
        return 0, 0
    edge, (width, height) = int(processor.max_image_size["longest_edge"]), size
    if processor.do_resize and (longest := processor.size.get("longest_edge")):
        width, height = _longest(Size(width, height), int(longest))
    elif processor.do_resize:
        width, height = int(processor.size["width"]), int(processor.size["height"])
    ratio = width / height
    if width >= height:
        width = ceil(width / edge) * edge
        height = ceil(int(width / ratio) / edge) * edge
    else:
        height = ceil(height / edge) * edge
        width = ceil(int(height * ratio) / edge) * edge
    return (0, 0) if max(width, height) <= edge else (height // edge, width // edge)


def by_shape(size: Size, processor: Any) -> tuple[int, int]:
    """The rows and columns whose shape is most like the image's, of a least and a largest number of tiles (InternVL).

    Of those that are equally like it, the one with the most tiles, unless they have more than twice the image's pixels.
    """
    least, most = int(processor.min_patches), int(processor.max_patches)
    if most <= 1:
        return 0, 0
    tile, pixels = int(processor.size["height"]) * int(processor.size["width"]), size.width * size.height
    shapes = [
        (wide, high) for wide in range(1, most + 1) for high in range(1, most + 1) if least <= wide * high <= most
    ]
    best, difference = (1, 1), inf
    for wide, high in sorted(shapes, key=prod):
        found = abs(size.width / size.height - wide / high)
        if found < difference or (found == difference and pixels > 0.5 * tile * wide * high):
            best, difference = (wide, high), found
    return (0, 0) if best == (1, 1) else (best[1], best[0])


def _longest(size: Size, longest: int) -> tuple[int, int]:
    """An image's size when its longer side has this length, the other an even one, and neither more than 4096."""
    ratio, wide = size.width / size.height, size.width >= size.height
    other = int(longest / ratio) if wide else int(longest * ratio)
    other += other % 2
    width, height = (longest, max(1, other)) if wide else (max(1, other), longest)
    if max(width, height) > MOST_PIXELS:
        ratio = width / height
        width, height = (MOST_PIXELS, int(MOST_PIXELS / ratio)) if wide else (int(MOST_PIXELS * ratio), MOST_PIXELS)
    return max(width, 1), max(height, 1)


def unpadded(side: int, edge: int, canvases: Sequence[tuple[int, int]]) -> Spreading:
    """The whole image, then its tiles of `edge` pixels without what pads them, each row with an end (LLaVA-NeXT).

    Each tile has `side` x `side` positions. canvases: the heights and widths that an image is fitted into.
    """

    def spread(size: Size, _processor: Any) -> Spread:
        high, wide = _canvas(size, canvases)
        rows, columns = side * (high // edge), side * (wide // edge)
        down = across = 0
        if size.width / size.height > columns / rows:
            down = (rows - int(round(size.height * (columns / size.width), 7))) // 2
        else:
            across = (columns - int(round(size.width * (rows / size.height), 7))) // 2
        kept, each, patch = Size(columns - 2 * across, rows - 2 * down), side * side, edge / side
        # What the image is resized to, in the middle of the canvas.
        scale = min(wide / size.width, high / size.height)
        width, height = min(ceil(size.width * scale), wide), min(ceil(size.height * scale), high)
        left, top = across * patch - (wide - width) // 2, down * patch - (high - height) // 2
        places = [each + row * (kept.width + 1) + column for row in range(kept.height) for column in range(kept.width)]
        edges = left / width, top / height, (left + kept.width * patch) / width, (top + kept.height * patch) / height
        tiles = Lying(kept.height, kept.width, places, *edges)
        whole = Lying(side, side, range(each))
        return Spread(each + kept.height * (kept.width + 1), (tiles, whole) if places else (whole,))

    return spread


def _canvas(size: Size, canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The height and width that keep most of an image's pixels; of those that keep as many, the smallest."""

    def kept(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / size.width, canvas[0] / size.height)
        pixels = min(int(size.width * scale) * int(size.height * scale), size.width * size.height)
        return pixels, pixels - canvas[0] * canvas[1]

    return max(canvases, key=kept)
