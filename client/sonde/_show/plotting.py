"""Figures. Each function takes a result and gives a matplotlib Figure, without touching pyplot's global state."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sonde._arrays import Floats, Label, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sonde._answers.interventions import InterventionResult
    from sonde._ask.names import ComponentName
    from sonde._methods.traces import AttributionPatchingResult, CausalTracingResult, TokenProbabilityResult
    from sonde.questions import AverageTrace

_COLOURS: Final = {"residual_post": "Purples", "mlp_out": "Greens", "attention_out": "Reds"}
_TITLES: Final = {
    "token_embedding": "token embedding",
    "residual_pre": "residual stream before the block",
    "residual_mid": "residual stream within the block",
    "residual_post": "residual stream after the block",
    "mlp_out": "MLP output",
    "attention_out": "attention output",
}
_WINDOWED: Final = ("mlp_out", "attention_out")
_INK: Final = "#222222"
_MANY: Final = 40
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


def causal_tracing(result: "CausalTracingResult", *, target: int = 0) -> "Figure":
    """ROME's heat maps (Meng et al. 2022, figure 1): a panel per component, tokens down, layers across.

    All panels share one scale, from the corrupted probability to the largest restored one, so that their depths of
    colour compare. Corrupted tokens are starred.
    """
    names = list(result.restored)
    rows = max((grid.shape[0] for grid in result.restored.values()), default=1)
    columns = max((grid.shape[1] for grid in result.restored.values()), default=1)
    word = visible(result.targets[target].text).strip() or "target"
    low = float(result.corrupted[target])
    peak = max((float(np.nanmax(grid[..., target], initial=low)) for grid in result.restored.values()), default=low)
    high = max(peak, low + 1e-6)

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
        for i, (name, axes) in enumerate(zip(names, panels, strict=True)):
            layers = result.axes[name]["layer"]
            image = _grid(axes, result.restored[name][..., target], _COLOURS.get(name, "Blues"), low, high)
            _ticks(axes, layers, result.row_labels(name))
            axes.set_title(_TITLES.get(name, name.replace("_", " ")), pad=8)
            windowed = name in _WINDOWED and result.window > 1
            axes.set_xlabel(f"centre of {result.window} restored layers" if windowed else "restored layer")
            if i and result.row_labels(name) == result.row_labels(names[0]):
                axes.set_yticklabels([])
            bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03, aspect=28)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=2, labelsize=8)
            bar.ax.set_title(f"p({word})", fontsize=8, pad=6)
        clean = float(result.clean[target])
        figure.suptitle(
            f"Where restoring one clean state brings “{word}” back: {clean:.3f} clean, {low:.3f} corrupted (*)",
            x=0.01,
            ha="left",
            fontsize=11,
        )

    label = max((len(text) for name in names for text in result.row_labels(name)), default=5)
    width = 0.085 * label + len(names) * (1.15 + min(3.2, max(1.6, 0.17 * columns)))
    return _figure(width, 1.25 + 0.24 * rows, draw)


def lens(result: "TokenProbabilityResult", *, target: int = 0) -> "Figure":
    """A target's probability by depth with the top token at each, and its gradient norms if there are any."""
    norms = result.gradient_norms
    word = visible(result.targets[target].text).strip() or "target"
    depths = np.array(result.depths)

    def draw(figure: "Figure") -> None:
        if norms is None:
            curve = figure.subplots()
        else:
            curve, heat = figure.subplots(1, 2, width_ratios=[1, 1.25])
            labels = list(result.token_labels(result.gradient_positions))
            grid = norms[..., target].T
            image = _grid(heat, grid, "Blues", 0.0, max(float(np.nanmax(grid, initial=0.0)), 1e-12))
            _ticks(heat, result.depths, labels)
            heat.set_xlabel("after block (0: embeddings)")
            heat.set_title("gradient norm", pad=8)
            bar = figure.colorbar(image, ax=heat, shrink=0.85, pad=0.03, aspect=28)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=2, labelsize=8)
        probabilities = result.probabilities[:, target]
        curve.plot(depths, probabilities, color="#54278f", marker="o", markersize=4, linewidth=1.6, clip_on=False)
        curve.set_ylim(0, 1.05)
        curve.set_xlim(depths[0], max(depths[-1], depths[0] + 1))
        curve.set_xticks(_sparse(len(depths), 12), [str(depths[i]) for i in _sparse(len(depths), 12)])
        curve.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        curve.set_axisbelow(True)
        curve.set_xlabel("after block (0: embeddings)")
        curve.set_title(f"probability of “{word}” read there", pad=8)
        if result.top_token_ids.shape[1:] > (0,):
            for i in _sparse(len(depths), 12):
                text = visible(result.top_at(int(depths[i]), 1)[0].text).strip()
                above = probabilities[i] < 0.6
                curve.annotate(
                    text,
                    (depths[i], probabilities[i]),
                    xytext=(0, 6 if above else -6),
                    textcoords="offset points",
                    rotation=55,
                    ha="left" if above else "right",
                    va="bottom" if above else "top",
                    fontsize=7,
                    color="#666666",
                )

    positions = 0 if norms is None else norms.shape[1]
    return _figure(4.6 if norms is None else 9.2, max(3.0, 1.2 + 0.22 * positions), draw)


def average_trace(result: "AverageTrace") -> "Figure":
    """The average indirect effects of many causal traces (Meng et al. 2022, figure 2), a panel per component.

    All panels share one scale, which begins at no effect, as the paper's does.
    """
    from sonde.questions import TOKEN_CLASSES

    peak = max((float(np.nanmax(effects, initial=0.0)) for effects in result.effects.values()), default=0.0)
    labels = [f"{name} ({count:,})" for name, count in zip(TOKEN_CLASSES, result.counts, strict=True)]

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(result.effects), squeeze=False)[0]
        for i, (name, axes) in enumerate(zip(result.effects, panels, strict=True)):
            image = _grid(axes, result.effects[name], _COLOURS.get(name, "Blues"), 0.0, max(peak, 1e-6))
            _ticks(axes, result.layers[name], labels)
            axes.set_title(_TITLES.get(name, name.replace("_", " ")), pad=8)
            axes.set_xlabel("restored layer, or the centre of several")
            if i:
                axes.set_yticklabels([])
            bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03, aspect=28)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=2, labelsize=8)
        figure.suptitle(
            f"Average indirect effect over {int(result.used.sum()):,} prompts: "
            f"{result.clean:.3f} clean, {result.corrupted:.3f} corrupted",
            x=0.01,
            ha="left",
            fontsize=11,
        )

    columns = max((effects.shape[1] for effects in result.effects.values()), default=1)
    width = 2.6 + len(result.effects) * (1.15 + min(3.2, max(1.6, 0.17 * columns)))
    return _figure(width, 1.25 + 0.24 * len(labels), draw)


def interventions(result: "InterventionResult", *, target: int = 0) -> "Figure":
    """What each run did to a target: a heat map over two axes of a sweep, else bars, the largest if there are many."""
    effect = result.effect[..., target]
    word = visible(result.targets[target].text).strip() or "target"
    title = f"change of log p({word}), in nats; unchanged p = {float(result.clean.probabilities[target]):.3f}"
    long_axes = [name for name in list(result.axes)[:-1] if len(result.axes[name]) > 1]
    if len(long_axes) == 2:
        grid = effect.reshape([len(result.axes[name]) for name in long_axes])
        down, across = long_axes
        if across == "layer" or (down == "unit" and across == "position"):
            down, across, grid = across, down, grid.T
        if down == "layer" and across == "position":
            down, across, grid = across, down, grid.T
        return _effect_heatmap(result, title, grid, down, across)
    changes = result.most_changed(min(len(result), _MANY), target=target)
    if len(result) <= _MANY:
        changes = sorted(changes, key=lambda change: change.run)
    labels = [_bar_label(result, change.run, change.place) for change in changes]
    values = np.array([change.effect for change in changes], np.float32)
    shown = f"{title}\n(the {len(changes)} largest of {len(result):,})" if len(changes) < len(result) else title
    return _bars(shown, labels, values)


def attributions(result: "AttributionPatchingResult", *, target: int = 0) -> "Figure":
    """Estimates by layer and position, one panel per component; units are summed. Of edges alone, the largest."""
    if not result.estimates and len(result.edges):
        some = result.edges[:_MANY]
        shown = f"the {len(some)} largest of {len(result.edges):,} edges" if len(some) < len(result.edges) else "edges"
        return _bars(shown, [str(edge) for edge in some], some.estimates[:, target])
    grids: dict[ComponentName, Floats] = {name: e[..., target] for name, e in result.estimates.items()}
    grids = {name: g.sum(axis=-1) if g.ndim > 2 else g for name, g in grids.items()}
    high = max((float(np.nanmax(np.abs(g), initial=1e-12)) for g in grids.values()), default=1.0)
    rows = max((g.shape[1] for g in grids.values()), default=1)

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, max(len(grids), 1), squeeze=False)[0]
        for axes, (name, grid) in zip(panels, grids.items(), strict=False):
            image = _grid(axes, grid.T, "RdBu", -high, high)
            positions = [int(p or 0) for p in result.axes[name]["position"]]
            _ticks(axes, result.axes[name]["layer"], list(result.token_labels(positions)))
            axes.set_title(_TITLES.get(name, name.replace("_", " ")), pad=8)
            axes.set_xlabel("layer")
            figure.colorbar(image, ax=axes, shrink=0.85, pad=0.03, aspect=28).outline.set_visible(False)

    return _figure(1 + 3.4 * max(len(grids), 1), 1.25 + 0.24 * rows, draw)


def require() -> None:
    """Make sure that figures can be drawn.

    Raises:
        ImportError: without matplotlib, with what to install.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'sonde[plot]'") from None
    del mpl


def save(figure: "Figure", path: str | Path | None) -> "Figure":
    """Save the figure if a path is given, in the format of its ending; a bare name becomes PNG."""
    if path is not None:
        figure.savefig(path, dpi=200, bbox_inches="tight")
    return figure


# ---------------------------------------------------------------------- pieces


def _figure(width: float, height: float, draw: Callable[["Figure"], None]) -> "Figure":
    require()
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05), facecolor="white")
        draw(figure)
    return figure


def _grid(axes: "Axes", values: Floats, colours: str, low: float, high: float) -> Any:
    """A heat map with the first row on top and a hairline between cells."""
    fine = max(values.shape) <= _MANY * 2
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


def _ticks(axes: "Axes", columns: tuple[Label, ...], rows: list[str]) -> None:
    across, down = _sparse(len(columns), 8), _sparse(len(rows), _MANY)
    axes.set_xticks([i + 0.5 for i in across], ["" if columns[i] is None else str(columns[i]) for i in across])
    axes.set_yticks([i + 0.5 for i in down], [rows[i].strip() or "␣" for i in down])


def _sparse(count: int, wanted: int) -> list[int]:
    """Evenly spaced indices, about as many as wanted."""
    step = next(s for base in (1, 10, 100, 1000, 10000) for s in (base, 2 * base, 5 * base) if count / s <= wanted)
    return list(range(0, count, step))


def _effect_heatmap(result: "InterventionResult", title: str, grid: Floats, down: str, across: str) -> "Figure":
    high = max(float(np.nanmax(np.abs(grid), initial=0.0)), 1e-6)

    def labels(name: str) -> list[str]:
        values = result.axes[name]
        if name != "position":
            return [str(label) for label in values]
        return [result.token_labels([label])[0] if isinstance(label, int) else str(label) for label in values]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        image = _grid(axes, grid, "RdBu", -high, high)
        _ticks(axes, tuple(labels(across)), labels(down))
        axes.set_xlabel(across)
        axes.set_ylabel("" if down == "position" else down)
        axes.set_title(title, pad=8)
        figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, aspect=28).outline.set_visible(False)

    width = min(12.0, max(5.5, 1.5 + 0.2 * grid.shape[1]))
    return _figure(width, min(12.0, max(2.6, 1.25 + 0.24 * grid.shape[0])), draw)


def _bars(title: str, labels: list[str], values: Floats) -> "Figure":
    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        rows = np.arange(len(labels))
        colours = ["#b2182b" if value < 0 else "#2166ac" for value in values]
        axes.barh(rows, np.nan_to_num(values), color=colours, height=0.72)
        axes.set_yticks(rows, labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.axvline(0, color="#999999", linewidth=0.8)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(title, pad=8)

    return _figure(6.0, 0.9 + 0.21 * max(len(labels), 2), draw)


def _bar_label(result: "InterventionResult", run: int, place: str) -> str:
    """A place by the axes that vary; a position by its token as well."""
    if "run" in result.axes:
        return f"run {run}"
    indices = np.unravel_index(run, result.arrived.shape)
    parts = []
    for (name, labels), index in zip(list(result.axes.items())[:3], indices, strict=True):
        label = labels[int(index)]
        if len(labels) > 1:
            token = (
                f" {result.token_labels([label])[0].strip()}" if name == "position" and isinstance(label, int) else ""
            )
            parts.append(f"{name} {label}{token}")
    return ", ".join(parts) or place
