"""Figures: heat maps in panels, curves and bars, without pyplot's global state.

Importing this module does not import matplotlib; drawing does.
"""

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


def draw_panel(made: "Figure", axes: "Axes", panel: Panel, low: float, high: float, *, legend: str = "") -> None:
    """Draw one heat map with its labels and its colour bar."""
    image = _grid(axes, panel.values, panel.colours, low, high)
    _label_cells(axes, panel.columns, panel.rows)
    axes.set_title(panel.title, pad=8)
    axes.set_xlabel(panel.across)
    axes.set_ylabel(panel.down)
    bar = made.colorbar(image, ax=axes, shrink=0.85, pad=0.03, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=8)
    bar.ax.set_title(legend, fontsize=8, pad=6)


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


def draw_curve(
    axes: "Axes",
    title: str,
    at: Sequence[int],
    values: Floats,
    *,
    across: str,
    tops: Sequence[str],
    errors: Floats | None = None,
) -> None:
    """Draw numbers from 0 to 1 as a line; `tops` has a text for each point, or none at all.

    `errors`, [2, point], are drawn as lines of these lengths downward and upward; NaN draws none.
    """
    axes.plot(at, values, color="#54278f", marker="o", markersize=4, linewidth=1.6, clip_on=False)
    if errors is not None:
        known = np.isfinite(values) & np.isfinite(errors).all(0)
        axes.errorbar(np.asarray(at)[known], values[known], yerr=errors[:, known], **_ERROR_BARS)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(at[0], max(at[-1], at[0] + 1))
    labelled = _sparse(len(at), MOST_POINTS)
    axes.set_xticks(labelled, [str(at[i]) for i in labelled])
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(across)
    axes.set_title(title, pad=8)
    for i in labelled if tops else []:
        above = values[i] < 0.6
        axes.annotate(
            visible(tops[i]).strip(),
            (at[i], values[i]),
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            rotation=55,
            ha="left" if above else "right",
            va="bottom" if above else "top",
            fontsize=7,
            color="#666666",
        )


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


def _wrapped(title: str, width: float) -> list[str]:
    """The lines of a title that is no wider than a figure of this width in inches."""
    return [
        line for part in title.splitlines() for line in textwrap.wrap(part, max(20, int(_CHARACTERS_PER_INCH * width)))
    ]


def _title(made: "Figure", wrapped: Sequence[str]) -> None:
    """Write a title from the left edge of the figure."""
    made.suptitle("\n".join(wrapped), x=0.01, ha="left", fontsize=11)
