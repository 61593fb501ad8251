"""One chart of all results: a panel for each workload, shape and length; bars are times, on a logarithmic axis."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from tests.bench.report import Outcome, Setting

COLOURS = {
    "sonde": "#c8401e",
    "serial": "#e8a18f",
    "library": "#5b7f95",
    "hand": "#7a9a6b",
    "script": "#a58ab0",
}


def draw(path: Path, settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> None:
    """Writes the chart as a PNG."""
    mpl.rcParams["font.size"] = 8
    workloads = list(dict.fromkeys(one.workload for one in outcomes))
    rows, columns = len(workloads), len(settings)
    most = max(len(one.timings) for one in outcomes)
    figure = Figure(figsize=(max(6.0, 4.6 * columns), rows * (0.7 + 0.2 * most)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    titled: set[int] = set()
    for row, workload in enumerate(workloads):
        for column, setting in enumerate(settings):
            panel: Axes = panels[row][column]
            found = [
                one
                for one in outcomes
                if (one.workload, one.shape, one.length) == (workload, setting.shape, setting.length)
            ]
            if not found:
                panel.set_axis_off()
                continue
            _panel(panel, found[0], most)
            if column not in titled:
                titled.add(column)
                panel.set_title(
                    f"{setting.shape}, {setting.length} tokens\n\n{workload}", loc="left", fontweight="bold"
                )
            else:
                panel.set_title(workload, loc="left", fontweight="bold")
    line = Line2D([], [], color="black", linestyle=":", label="counted minimum")
    figure.legend(handles=[line], loc="outside lower right", frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, outcome: Outcome, most: int) -> None:
    timings = sorted(outcome.timings, key=lambda one: -one.median)
    sonde = outcome.sonde.median
    names = [timing.entry.contender.name for timing in timings]
    medians = [timing.median for timing in timings]
    panel.axvline(outcome.minimum, color="black", linestyle=":", linewidth=1)
    bars = panel.barh(names, medians, color=[COLOURS[timing.entry.kind] for timing in timings], height=0.7, zorder=2)
    labels = panel.bar_label(
        bars,
        [_time(median) + ("" if median == sonde else f"  ({median / sonde:.2g}x)") for median in medians],
        padding=3,
        fontsize=7,
    )
    for label in labels:
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    panel.set_xscale("log")
    low, high = min(outcome.minimum, *medians), max(medians)
    # A bar has no zero on a logarithmic axis: the shortest is given some length, and the labels room.
    panel.set_xlim(low / 2, high * (high / low) ** 0.4 * 3)
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_ylim(len(timings) - 0.4 - most, len(timings) - 0.4)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("seconds")


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s" if seconds < 100.0 else f"{seconds:.0f} s"
