"""Figures of graphs: circuits, layer by layer, and trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde._show.palette import SERIES
from sonde._show.plotting import figure, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCH_ACROSS, _INCH_UP = 1.05, 0.62
_WIDEST, _TALLEST = 14.0, 16.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A node of a graph: where it is, in columns from the left and rows from the bottom, and its text."""

    across: float
    up: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """An edge: the numbers of its nodes, its width from 0 to 1, and the number of its colour."""

    start: int
    end: int
    width: float = 0.5
    colour: int = 0


def graph(
    title: str, dots: Sequence[Dot], lines: Sequence[Line], *, legend: Sequence[str] = (), straight: bool = True
) -> "Figure":
    """Draw nodes with their texts, and lines between them that point upwards.

    Args:
        title: the title.
        dots: the nodes.
        lines: the edges.
        legend: what the colours mean, by their numbers.
        straight: whether lines are straight; bent ones can be told apart where nodes stand in a row.
    """
    across = max((dot.across for dot in dots), default=0.0) - min((dot.across for dot in dots), default=0.0)
    up = max((dot.up for dot in dots), default=0.0) - min((dot.up for dot in dots), default=0.0)
    wide = min(_WIDEST, max(6.4, 1.6 + _INCH_ACROSS * across))
    tall = min(_TALLEST, max(2.2, 1.5 + _INCH_UP * up + 0.2 * title.count("\n")))

    def draw(made: "Figure") -> None:
        axes = made.subplots()
        for line in lines:
            one, other = dots[line.start], dots[line.end]
            axes.annotate(
                "",
                (other.across, other.up),
                (one.across, one.up),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": SERIES[line.colour % len(SERIES)],
                    "linewidth": 0.6 + 2.4 * line.width,
                    "alpha": 0.35 + 0.5 * line.width,
                    "shrinkA": 9,
                    "shrinkB": 9,
                    "mutation_scale": 8,
                    "connectionstyle": f"arc3,rad={0.0 if straight else 0.08}",
                },
            )
        for dot in dots:
            axes.text(
                dot.across,
                dot.up,
                dot.text,
                ha="center",
                va="center",
                fontsize=7.5,
                bbox={"boxstyle": "round,pad=0.3", "facecolor": "#f4f4f4", "edgecolor": "#888888", "linewidth": 0.8},
            )
        left, right = min(d.across for d in dots), max(d.across for d in dots)
        axes.set_xlim(left - 0.7, right + 0.7)
        axes.set_ylim(min(d.up for d in dots) - 0.6, max(d.up for d in dots) + 0.6)
        axes.set_axis_off()
        for number, name in enumerate(legend):
            axes.plot([], [], color=SERIES[number % len(SERIES)], label=name)
        if legend:
            made.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=len(legend))
        write_title(made, title, wide)

    return figure(wide, tall, draw)
