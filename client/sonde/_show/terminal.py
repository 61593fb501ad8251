"""Heat maps and tables as text, with colours if the terminal supports them."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TextIO, TypeAlias

import numpy as np

from sonde._arrays import Floats, visible
from sonde._show.display import Ranked
from sonde._show.palette import BLUES, Ramp

Colours: TypeAlias = Literal["none", "256", "truecolor"]

# The levels of the 256-colour palette's cube.
_CUBE: Final = (0, 95, 135, 175, 215, 255)
_RESET: Final = "\x1b[0m"


def colours_of(stream: TextIO | None = None) -> Colours:
    """The colours that a stream supports. NO_COLOR and dumb terminals disable them; COLORTERM announces 24 bits."""
    target = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not target.isatty():
        return "none"
    return "truecolor" if os.environ.get("COLORTERM", "") in {"truecolor", "24bit"} else "256"


def heatmap(
    values: Floats,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    ramp: Ramp = BLUES,
    colours: Colours = "none",
) -> str:
    """A heat map of [row, column]; without colours, a table of the numbers."""
    labels = [visible(row) for row in rows]
    width = max(map(len, labels), default=0)
    if colours == "none":
        cell = max(4, *(len(column) for column in columns)) + 1
        head = " " * width + "".join(column.rjust(cell) for column in columns)
        body = [
            label.rjust(width) + "".join(_number(value).rjust(cell) for value in row)
            for label, row in zip(labels, values, strict=True)
        ]
        return "\n".join([head, *body])
    cell = max(2, *(len(column) for column in columns))
    head = " " * (width + 1) + "".join(column.rjust(cell) for column in columns)
    body = []
    for label, row in zip(labels, values, strict=True):
        cells = "".join(f"{_background(value, low, high, ramp, colours)}{' ' * cell}" for value in row)
        body.append(f"{label.rjust(width)} {cells}{_RESET}")
    scale = "".join(
        f"{_background(value, 0.0, 1.0, ramp, colours)} " for value in np.linspace(0, 1, 24, dtype=np.float32)
    )
    body.append(f"{' ' * (width + 1)}{low:.3f} {scale}{_RESET} {high:.3f}")
    return "\n".join([head, *body])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with aligned columns: numbers on the right, text on the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def line(texts: Sequence[str]) -> str:
        aligned = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["─" * width for width in widths]), *map(line, cells)])


def ranking(title: str, tokens: Iterable[Ranked]) -> str:
    """The most probable tokens, with bars."""
    rows = [[repr(visible(token.text)), token.probability, bar(token.probability)] for token in tokens]
    return table([title, "p", ""], rows)


def bar(value: float, width: int = 20) -> str:
    """A number from 0 to 1 as a bar, in steps of an eighth of a character."""
    eighths = round(8 * width * min(max(value, 0.0), 1.0))
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return "·" if np.isnan(value) else f"{value:.2f}"


def _background(value: float, low: float, high: float, ramp: Ramp, colours: Colours) -> str:
    if np.isnan(value):
        return _RESET
    share = min(max((float(value) - low) / (high - low), 0.0), 1.0) * (len(ramp) - 1)
    lower = min(int(share), len(ramp) - 2)
    mix = share - lower
    pairs = zip(ramp[lower], ramp[lower + 1], strict=True)
    red, green, blue = (round(a + (b - a) * mix) for a, b in pairs)
    if colours == "truecolor":
        return f"\x1b[48;2;{red};{green};{blue}m"
    red, green, blue = (min(range(6), key=lambda i: abs(_CUBE[i] - part)) for part in (red, green, blue))
    return f"\x1b[48;5;{16 + 36 * red + 6 * green + blue}m"
