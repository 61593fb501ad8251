"""Figures: heat maps in panels, curves and bars, without pyplot's global state.

Importing this module does not import matplotlib; drawing does.
"""

import io
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sonde._arrays import Floats, Label, visible
from sonde._show.palette import MARKERS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS: Final = 40
"""The most rows with a label or a bar of their own."""
MOST_COLUMNS: Final = 8
MOST_POINTS: Final = 12
MOST_TOKENS: Final = 24
"""The most positions of a table of tokens."""
MOST_PATTERNS: Final = 6
"""The most patterns of attention that have their tokens beside them."""
_LONGEST_TOKEN: Final = 12
_DARK: Final = 0.55
"""From this share on, text on a cell is white."""
_CHARACTERS_PER_INCH: Final = 12
"""How much of a title fits above the panels."""
_LINE_INCHES: Final = 0.19
_INK: Final = "#222222"
_BARS_INCHES: Final = 6.4
_LINES_INCHES: Final = (6.4, 3.0)
_BAR_COLOURS: Final = ("#b2182b", "#2166ac")
_PALE_BAR_COLOURS: Final = ("#d6604d", "#4393c3")
"""On these, the lines of errors can be seen."""
_ERROR_BARS: Final[dict[str, Any]] = {"fmt": "none", "ecolor": _INK, "elinewidth": 1.0, "capsize": 2.5}
_STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "mathtext.default": "regular",
    "text.parse_math": False,
}


def require() -> None:
    """Check that figures can be drawn.

    Raises:
        ImportError: if matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'sonde[plot]'") from None
    del mpl


def save(drawn: "Figure", path: str | Path | None) -> "Figure":
    """Save the figure if a path is given. The suffix chooses the format; the default is PNG."""
    if path is not None:
        drawn.savefig(path, dpi=200, bbox_inches="tight")
    return drawn


def figure(width: float, height: float, draw: Callable[["Figure"], None]) -> "Figure":
    """Create a figure of this size, in inches, and let `draw` fill it."""
    require()
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        made = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05), facecolor="white")
        draw(made)
    return made


# ---------------------------------------------------------------------- heat maps


@dataclass(frozen=True)
class Panel:
    """One heat map of a figure."""

    title: str
    values: Floats
    """[row, column]"""
    rows: Sequence[str]
    columns: Sequence[Label]
    colours: str
    """The name of matplotlib's colour map."""
    across: str
    """The label of the horizontal axis."""
    down: str = ""
    """The label of the vertical axis."""


def panels(
    shown: Sequence[Panel],
    low: float,
    high: float,
    *,
    title: str = "",
    legend: str = "",
    size: tuple[float, float] | None = None,
) -> "Figure":
    """Draw heat maps side by side on one scale, so that their colours can be compared.

    A panel with the same rows as the first one does not repeat their labels.

    Args:
        shown: the panels.
        low: the value at the low end of the colour maps.
        high: the value at the high end.
        title: a title above all panels; one that is wider than they are is wrapped.
        legend: a title above each colour bar.
        size: width and height in inches; None chooses them from the number of rows and columns.
    """

    def draw(made: "Figure") -> None:
        for i, (panel, axes) in enumerate(zip(shown, made.subplots(1, max(len(shown), 1), squeeze=False)[0])):  # noqa: B905
            draw_panel(made, axes, panel, low, high, legend=legend)
            if i and list(panel.rows) == list(shown[0].rows):
                axes.set_yticklabels([])
        if title:
            _title(made, wrapped)

    width, height = size or _size(shown)
    wrapped = _wrapped(title, width)
    return figure(width, height + _LINE_INCHES * max(len(wrapped) - 1, 0), draw)


@dataclass(frozen=True)
class Beneath:
    """Numbers over an image, or over a part of it, for each panel, and the image's file if it is to be seen."""

    values: Sequence[Floats]
    """[row, column], for each panel."""
    edges: tuple[float, float, float, float]
    """Left, top, right and bottom of the part, as shares of the image's width and height."""
    file: bytes | None = None


def panels_over_image(
    shown: Sequence[Panel], low: float, high: float, over: Beneath, *, title: str = "", legend: str = ""
) -> "Figure":
    """Draw heat maps side by side on one scale, and beneath each its numbers over the image, on a scale of their own.

    Args:
        shown: the panels.
        low: the value at the low end of the panels' colour maps.
        high: the value at the high end.
        over: what lies over the image.
        title: a title above all panels; one that is wider than they are is wrapped.
        legend: a title above the colour bars of the panels.
    """
    least = min([0.0, *(float(np.nanmin(values)) for values in over.values if np.isfinite(values).any())])
    most = max([least + 1e-12, *(float(np.nanmax(values)) for values in over.values if np.isfinite(values).any())])
    width, height = _size(shown)
    rows, columns = over.values[0].shape
    tall = min(3.0, max(1.2, 2.2 * rows / columns))
    wrapped = _wrapped(title, width)

    def draw(made: "Figure") -> None:
        above, below = made.subplots(2, max(len(shown), 1), squeeze=False, height_ratios=[height, tall])
        for i, (panel, axes, under) in enumerate(zip(shown, above, below)):  # noqa: B905 - a figure has at least one
            draw_panel(made, axes, panel, low, high, legend=legend)
            if i and list(panel.rows) == list(shown[0].rows):
                axes.set_yticklabels([])
            image = _over_image(under, over, i, panel.colours, (least, most))
            under.set_title("effect by place in the image", fontsize=9, pad=4)
            _bar(made, under, image, "own scale")
        if title:
            _title(made, wrapped)

    return figure(width, height + tall + 0.6 + _LINE_INCHES * max(len(wrapped) - 1, 0), draw)


def _over_image(axes: "Axes", over: Beneath, number: int, colours: str, scale: tuple[float, float]) -> Any:
    """Numbers over the part of an image that they belong to; the picture itself, if it is there, shows through."""
    values, (left, top, right, bottom) = over.values[number], over.edges
    image = _grid(axes, values, colours, *scale)
    # The edges of the whole image, in cells of the grid.
    across, down = values.shape[1] / (right - left), values.shape[0] / (bottom - top)
    edges = -left * across, (1 - left) * across, (1 - top) * down, -top * down
    if over.file is not None:
        axes.imshow(_picture(over.file), extent=edges, aspect="auto", zorder=0)
        image.set_alpha(0.6)
    axes.set_xlim(edges[0], edges[1])
    axes.set_ylim(edges[2], edges[3])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def _picture(file: bytes) -> Any:
    """The pixels of an image."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))


def draw_panel(made: "Figure", axes: "Axes", panel: Panel, low: float, high: float, *, legend: str = "") -> None:
    """Draw one heat map with its labels and its colour bar."""
    image = _grid(axes, panel.values, panel.colours, low, high)
    _label_cells(axes, panel.columns, panel.rows)
    axes.set_title(panel.title, pad=8)
    axes.set_xlabel(panel.across)
    axes.set_ylabel(panel.down)
    _bar(made, axes, image, legend)


def _size(shown: Sequence[Panel]) -> tuple[float, float]:
    rows = max((len(panel.rows) for panel in shown), default=1)
    columns = max((len(panel.columns) for panel in shown), default=1)
    label = max((len(row) for panel in shown for row in panel.rows), default=5)
    return 0.085 * label + max(len(shown), 1) * (1.15 + min(3.2, max(1.6, 0.17 * columns))), 1.25 + 0.24 * rows


def _grid(axes: "Axes", values: Floats, colours: str, low: float, high: float) -> Any:
    """A heat map with the first row on top and a hairline between cells."""
    fine = max(values.shape) <= MOST_ROWS * 2
    image = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=low,
        vmax=high,
        edgecolors="white" if fine else "none",
        linewidth=0.4 if fine else 0.0,
    )
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def _label_cells(axes: "Axes", columns: Sequence[Label], rows: Sequence[str]) -> None:
    across, down = _sparse(len(columns), MOST_COLUMNS), _sparse(len(rows), MOST_ROWS)
    axes.set_xticks([i + 0.5 for i in across], ["" if columns[i] is None else str(columns[i]) for i in across])
    axes.set_yticks([i + 0.5 for i in down], [rows[i].strip() or "␣" for i in down])


def _sparse(count: int, wanted: int) -> list[int]:
    """Evenly spaced indices, at most `wanted` of them."""
    step = next(s for base in (1, 10, 100, 1000, 10000) for s in (base, 2 * base, 5 * base) if count / s <= wanted)
    return list(range(0, count, step))


# ---------------------------------------------------------------------- curves and bars


def draw_lens(
    axes: "Axes",
    title: str,
    at: Sequence[int],
    values: Floats,
    *,
    spread: tuple[Floats, Floats] | None = None,
    down: str,
    tops: Sequence[str],
) -> None:
    """Draw probabilities from 0 to 1 across, depth upwards; `tops` has a text for each depth, or none at all.

    `spread` has the ends of an error at each depth.
    """
    axes.plot(values, at, color=SERIES[0], marker="o", markersize=4, linewidth=1.6, clip_on=False, zorder=3)
    if spread is not None:
        axes.fill_betweenx(at, *spread, color=SERIES[0], alpha=0.2, linewidth=0)
    axes.set_xlim(0, 1.0)
    axes.set_ylim(at[0] - 0.5, max(at[-1], at[0] + 1) + 0.5)
    shown = [len(at) - 1 - i for i in _sparse(len(at), MOST_ROWS)]
    axes.set_yticks([at[i] for i in shown])
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(title)
    axes.set_ylabel(down)
    if tops:
        place = axes.get_yaxis_transform()
        axes.text(1.05, at[-1] + 0.75, "top token", transform=place, fontsize=8, color="#666666", va="bottom")
        for i in shown:
            axes.text(1.05, at[i], _cut(tops[i]), transform=place, fontsize=8, va="center")


def bars(
    title: str, labels: Sequence[str], values: Floats, *, errors: Floats | None = None, across: str = ""
) -> "Figure":
    """Draw horizontal bars: blue for positive values, red for negative ones.

    Args:
        title: the title; one that is wider than the figure is wrapped.
        labels: one for each bar.
        values: [bar]
        errors: [bar]: the standard error of each value, drawn as a line of this length to both sides; NaN draws none.
        across: the label of the horizontal axis.
    """
    lines = _wrapped(title, _BARS_INCHES)

    def draw(made: "Figure") -> None:
        axes = made.subplots()
        rows = np.arange(len(labels))
        below, above = _BAR_COLOURS if errors is None else _PALE_BAR_COLOURS
        colours = [below if value < 0 else above for value in values]
        axes.barh(rows, np.nan_to_num(values), color=colours, height=0.72)
        if errors is not None:
            known = np.isfinite(values) & np.isfinite(errors)
            axes.errorbar(values[known], rows[known], xerr=errors[known], **_ERROR_BARS)
        axes.set_yticks(rows, [visible(label) for label in labels])
        axes.locator_params(axis="x", nbins=MOST_COLUMNS - 1)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.axvline(0, color="#999999", linewidth=0.8)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel(across)
        _title(made, lines)

    height = 0.75 + 0.21 * max(len(labels), 2) + 0.2 * bool(across) + _LINE_INCHES * len(lines)
    return figure(_BARS_INCHES, height, draw)


def points(
    title: str, labels: Sequence[str], values: Floats, errors: Floats, *, reference: float, across: str, named: str
) -> "Figure":
    """Draw numbers as points with their errors, one below the other, beside a reference.

    Args:
        title: the title; one that is wider than the figure is wrapped.
        labels: one for each number.
        values: [point]
        errors: [point]: the standard error of each, drawn as a line of this length to both sides; NaN draws none.
        reference: where a dashed line stands.
        across: the label of the horizontal axis.
        named: what the dashed line is, in words.
    """
    wrapped = _wrapped(title, _BARS_INCHES)

    def draw(made: "Figure") -> None:
        axes = made.subplots()
        rows = np.arange(len(labels))
        axes.errorbar(values, rows, xerr=errors, **(_ERROR_BARS | {"fmt": "o", "color": SERIES[0], "markersize": 4.5}))
        axes.axvline(reference, color=SERIES[1], linewidth=1.2, linestyle="--", label=named)
        axes.set_yticks(rows, [visible(label) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=MOST_COLUMNS - 1)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(across)
        made.legend(loc="outside right upper", frameon=False, fontsize=8)
        _title(made, wrapped)

    return figure(_BARS_INCHES, 1.0 + 0.21 * max(len(labels), 2) + _LINE_INCHES * len(wrapped), draw)


def lines(
    title: str,
    at: Sequence[float] | Sequence[str],
    series: Mapping[str, Floats],
    *,
    errors: Mapping[str, Floats] | None = None,
    across: str = "",
    down: str = "",
    zero: bool = False,
) -> "Figure":
    """Draw numbers as lines over a common horizontal axis, each in a colour and with a marker of its own.

    Args:
        title: the title; one that is wider than the figure is wrapped.
        at: where the numbers are along the horizontal axis: numbers, or texts, which are equally far apart.
        series: by the name of the line, which the legend shows if there are several, [point]; NaN leaves a gap.
        errors: by the same names, [point]: the standard error of each number, drawn as a band of this height to both
            sides; a line that has none is left out.
        across: the label of the horizontal axis.
        down: the label of the vertical axis.
        zero: draw a line at zero, for effects.
    """
    named = bool(len(at)) and isinstance(at[0], str)
    where = np.arange(len(at)) if named else np.asarray(at, np.float64)
    wrapped = _wrapped(title, _LINES_INCHES[0])

    def draw(made: "Figure") -> None:
        axes = made.subplots()
        for number, (name, values) in enumerate(series.items()):
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            spread = None if errors is None else errors.get(name)
            if spread is not None:
                axes.fill_between(where, values - spread, values + spread, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                where, values, color=colour, marker=marker, markersize=4, linewidth=1.6, label=visible(name).strip()
            )
        if zero:
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=0.5)
        if named:
            shown = _sparse(len(at), MOST_COLUMNS if max(map(len, map(str, at))) > 4 else MOST_POINTS)
            axes.set_xticks(shown, [visible(str(at[i])) for i in shown])
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        if len(series) > 1:
            made.legend(loc="outside right upper", frameon=False, fontsize=8)
        _title(made, wrapped)

    wide, tall = _LINES_INCHES
    return figure(wide, tall + _LINE_INCHES * len(wrapped), draw)


def write_title(made: "Figure", title: str, width: float) -> None:
    """Write a title above a figure of this width in inches, on as many lines as it needs."""
    _title(made, _wrapped(title, width))


def _wrapped(title: str, width: float) -> list[str]:
    """The lines of a title that is no wider than a figure of this width in inches."""
    return [
        line for part in title.splitlines() for line in textwrap.wrap(part, max(20, int(_CHARACTERS_PER_INCH * width)))
    ]


def _title(made: "Figure", wrapped: Sequence[str]) -> None:
    """Write a title from the left edge of the figure."""
    made.suptitle("\n".join(wrapped), x=0.01, ha="left", fontsize=11)


# ---------------------------------------------------------------------- tables of tokens, and attention


def token_table(
    title: str,
    rows: Sequence[Label],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    shares: Floats,
    *,
    down: str,
    across: str,
) -> "Figure":
    """Draw a table of tokens whose cells are coloured by their probability; the last row is on top.

    Of more rows than MOST_ROWS only some are shown, evenly spaced and with the last one; of more columns than
    MOST_TOKENS, the last ones. The title says so.

    Args:
        title: the title; one that is wider than the figure is wrapped.
        rows: the labels of the rows.
        columns: the labels of the columns.
        texts: [row][column]: what is written in each cell; long texts are cut.
        shares: [row, column]: the probability of each, from 0 to 1.
        down: the label of the vertical axis.
        across: the label of the horizontal axis.
    """
    step = -(-len(rows) // MOST_ROWS)
    shown = range(len(rows) - 1, -1, -max(step, 1))
    first = max(0, len(columns) - MOST_TOKENS)
    values = shares[list(shown)][:, first:]
    words = [[_cut(text) for text in texts[row][first:]] for row in shown]
    heads = [_cut(name) for name in columns[first:]]
    letters = max((len(text) for line in [heads, *words] for text in line), default=4)
    left = [*([f"every {step} blocks"] if step > 1 else []), *([f"the last {MOST_TOKENS} positions"] if first else [])]
    whole = f"{title} ({', '.join(left)})" if left else title
    width = max(5.0, 1.6 + len(heads) * (0.12 + 0.062 * letters))
    wrapped = _wrapped(whole, width)

    def draw(made: "Figure") -> None:
        axes = made.subplots()
        image = _grid(axes, values, "Blues", 0.0, 1.0)
        axes.set_xticks([i + 0.5 for i in range(len(heads))], heads, fontsize=7.5)
        axes.set_yticks([i + 0.5 for i in range(len(words))], [str(rows[row]) for row in shown], fontsize=7.5)
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        for i, line in enumerate(words):
            for j, text in enumerate(line):
                colour = "white" if values[i, j] > _DARK else _INK
                axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", fontsize=7, color=colour)
        _bar(made, axes, image, "probability")
        _title(made, wrapped)

    return figure(width, 0.9 + 0.2 * len(words) + _LINE_INCHES * len(wrapped), draw)


def attention(title: str, shown: Sequence[Panel], low: float, high: float, *, across: int, legend: str) -> "Figure":
    """Draw attention from queries (rows) to keys (columns), a panel for each head, on one scale.

    A few panels have their tokens beside them. Many are small and have only their titles.

    Args:
        title: the title; one that is wider than the figure is wrapped.
        shown: the panels, with the texts of queries as rows and of keys as columns.
        low: the value at the low end of the colours.
        high: the value at the high end.
        across: how many panels stand side by side.
        legend: a title above the colour bar.
    """
    few = len(shown) <= MOST_PATTERNS
    beside = min(3, len(shown)) if few else across
    queries, keys = shown[0].values.shape
    labels = max((len(name) for name in (*shown[0].rows, *shown[0].columns) if isinstance(name, str)), default=1)
    cell = 0.19 if max(queries, keys) <= MOST_ROWS else 7.6 / max(queries, keys)
    wide, tall = (
        (0.075 * labels + cell * keys + 0.3, 0.075 * labels + cell * queries + 0.25)
        if few
        else (0.85, 0.3 + max(0.7 * queries / max(queries, keys), 0.15))
    )
    down = -(-len(shown) // beside)
    width = max(4.2, wide * beside + 0.8)
    wrapped = _wrapped(title, width)

    def draw(made: "Figure") -> None:
        image = None
        for axes, panel in itertools.zip_longest(made.subplots(down, beside, squeeze=False).flat, shown):
            if panel is None:
                axes.set_axis_off()
                continue
            image = _grid(axes, panel.values, panel.colours, low, high)
            axes.set_title(panel.title, fontsize=9 if few else 7, pad=3)
            axes.set_aspect("equal")
            axes.spines[:].set_visible(True)
            axes.spines[:].set_color("#cccccc")
            axes.set_xticks([])
            axes.set_yticks([])
            if few:
                _label_tokens(axes, panel)
        if few:
            made.supxlabel("key: where attention goes to", fontsize=9)
            made.supylabel("query: where it comes from", fontsize=9)
        if image is not None:
            bar = made.colorbar(
                image,
                ax=made.axes,
                shrink=0.6 if tall * down > 2 else 1.0,
                pad=0.02,
                aspect=24 if tall * down > 2 else 6,
            )
            _plain_bar(bar, legend)
        _title(made, wrapped)

    return figure(width, tall * down + 0.3 + 0.2 * few + _LINE_INCHES * len(wrapped), draw)


def _label_tokens(axes: "Axes", panel: Panel) -> None:
    down, across = _sparse(len(panel.rows), MOST_ROWS), _sparse(len(panel.columns), MOST_ROWS)
    axes.set_yticks([i + 0.5 for i in down], [panel.rows[i].strip() or "␣" for i in down], fontsize=7.5)
    names = [str(panel.columns[i]).strip() or "␣" for i in across]
    axes.set_xticks([i + 0.5 for i in across], names, fontsize=7.5, rotation=90)


def _bar(made: "Figure", axes: "Axes", image: Any, legend: str) -> None:
    _plain_bar(made.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=28), legend)


def _plain_bar(bar: Any, legend: str) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=8)
    bar.ax.set_title(legend, fontsize=8, pad=6)


def _cut(text: str) -> str:
    shown = visible(text).strip() or "␣"
    return shown if len(shown) <= _LONGEST_TOKEN else f"{shown[: _LONGEST_TOKEN - 1]}…"
