"""Heat maps and tables as text: coloured blocks in a terminal, plain numbers elsewhere."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TextIO, TypeAlias

import numpy as np

from sonde._arrays import Floats, visible

if TYPE_CHECKING:
    from sonde._methods.traces import CausalTracingResult

Colours: TypeAlias = Literal["none", "256", "truecolor"]
_Rgb: TypeAlias = tuple[int, int, int]

# From almost white to the dark end, after the maps of the figures.
_RAMPS: Final[dict[str, tuple[_Rgb, ...]]] = {
    "residual_post": ((252, 251, 253), (188, 189, 220), (128, 125, 186), (84, 39, 143)),
    "mlp_out": ((247, 252, 245), (161, 217, 155), (65, 171, 93), (0, 90, 50)),
    "attention_out": ((255, 245, 240), (252, 146, 114), (239, 59, 44), (153, 0, 13)),
}
_OTHER: Final[tuple[_Rgb, ...]] = ((247, 251, 255), (158, 202, 225), (66, 146, 198), (8, 69, 148))
# The levels of the 256-colour palette's cube.
_CUBE: Final = (0, 95, 135, 175, 215, 255)
_RESET: Final = "\x1b[0m"


def colours_of(stream: TextIO | None = None) -> Colours:
    """What a stream can show. NO_COLOR and a dumb terminal switch colours off; COLORTERM tells of 24 bits."""
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
    ramp: str = "",
    colours: Colours = "none",
) -> str:
    """A heat map of [row, column]; without colours a table of the numbers."""
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
    steps = _RAMPS.get(ramp, _OTHER)
    head = " " * (width + 1) + "".join(column.rjust(cell) for column in columns)
    body = []
    for label, row in zip(labels, values, strict=True):
        cells = "".join(f"{_background(value, low, high, steps, colours)}{' ' * cell}" for value in row)
        body.append(f"{label.rjust(width)} {cells}{_RESET}")
    scale = "".join(
        f"{_background(value, 0.0, 1.0, steps, colours)} " for value in np.linspace(0, 1, 24, dtype=np.float32)
    )
    body.append(f"{' ' * (width + 1)}{low:.3f} {scale}{_RESET} {high:.3f}")
    return "\n".join([head, *body])


def causal_tracing(result: "CausalTracingResult", *, target: int = 0, colours: Colours | None = None) -> str:
    """A causal trace as one heat map per component, on one scale; corrupted tokens are starred."""
    shown = colours_of() if colours is None else colours
    low = float(result.corrupted[target])
    peak = max((float(np.nanmax(g[..., target], initial=low)) for g in result.restored.values()), default=low)
    word = visible(result.targets[target].text).strip()
    parts = [f"p({word}): {float(result.clean[target]):.3f} clean, {low:.3f} corrupted (*)"]
    for name, grid in result.restored.items():
        layers = ["-" if layer is None else str(layer) for layer in result.axes[name]["layer"]]
        rows = [row.strip() for row in result.row_labels(name)]
        parts.append(f"\n{name} restored, by layer")
        parts.append(
            heatmap(grid[..., target], rows, layers, low=low, high=max(peak, low + 1e-6), ramp=name, colours=shown)
        )
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with aligned columns: numbers to the right, texts to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def line(texts: Sequence[str]) -> str:
        aligned = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["─" * width for width in widths]), *map(line, cells)])


def bar(value: float, width: int = 20) -> str:
    """A number from 0 to 1 as a bar of eighths of a block."""
    eighths = round(8 * width * min(max(value, 0.0), 1.0))
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return "·" if np.isnan(value) else f"{value:.2f}"


def _background(value: float, low: float, high: float, ramp: Sequence[_Rgb], colours: Colours) -> str:
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
