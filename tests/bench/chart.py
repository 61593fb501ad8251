"""One chart of all results: a panel for each workload, shape and length; bars are times, on a logarithmic axis."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
            _panel(panel, found[0])
            if row == 0:
                panel.set_title(
                    f"{setting.shape}, {setting.length} tokens\n\n{workload}", loc="left", fontweight="bold"
                )
            else:
                panel.set_title(workload, loc="left", fontweight="bold")
    line = Line2D([], [], color="black", linestyle=":", label="counted minimum")
    figure.legend(handles=[line], loc="outside lower right", frameon=False)
    figure.savefig(path, dpi=110)


def _panel(panel: Axes, outcome: Outcome) -> None:
    timings = sorted(outcome.timings, key=lambda one: -one.median)
    sonde = outcome.sonde.median
    names = [timing.entry.contender.name for timing in timings]
    medians = [timing.median for timing in timings]
    bars = panel.barh(names, medians, color=[COLOURS[timing.entry.kind] for timing in timings], height=0.7)
    panel.bar_label(
        bars,
        [f"{median:.3g} s" + ("" if median == sonde else f"  ({median / sonde:.2g}x)") for median in medians],
        padding=3,
        fontsize=7,
    )
    panel.axvline(outcome.minimum, color="black", linestyle=":", linewidth=1)
    panel.set_xscale("log")
    low, high = min(outcome.minimum, *medians), max(medians)
    # A bar has no zero on a logarithmic axis: the shortest is given some length, and the labels room.
    panel.set_xlim(low / 2, high * (high / low) ** 0.35 * 3)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("seconds")
