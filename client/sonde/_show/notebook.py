"""What a notebook shows of each result."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sonde._answers.interventions import InterventionResult
from sonde._answers.results import Result
from sonde._arrays import Floats, visible
from sonde._methods.traces import (
    ActivationsResult,
    AttributionPatchingResult,
    CausalTracingResult,
    TokenProbabilityResult,
    TraceResult,
)
from sonde._show.display import curve, heatmap, html_table, note, page, ranking_html, sortable_table, token_strip

if TYPE_CHECKING:
    from sonde._answers.captured import Captured
    from sonde._ask.names import ComponentName

MOST_ROWS: Final = 50
"""Of a table of runs."""
_HUES: Final = {"mlp_out": "mlp", "attention_out": "attention"}
# Rows of the tables of attributions.
LARGEST = 10
_TWO: Final = 2


def html(result: Result) -> str:
    """The result as HTML."""
    if result.dry_run:
        return page(_cost(result))
    match result:
        case TokenProbabilityResult():
            pieces = _lens(result)
        case CausalTracingResult():
            pieces = _causal(result)
        case AttributionPatchingResult():
            pieces = _attributions(result)
        case ActivationsResult():
            pieces = [_prompt(result), captured_table(result.activations)]
        case InterventionResult():
            pieces = _interventions(result)
        case TraceResult():
            pieces = [_prompt(result), ranking_html("what comes next", result.prediction.top_tokens)]
        case _:
            pieces = [_prompt(result)]
    return page(*pieces, _made(result))


def captured_table(captured: "Captured") -> str:
    """Which activations were read, and how large they are."""
    rows: list[list[object]] = []
    for index, array in captured.items():
        axes = " x ".join(f"{name} {len(labels)}" for name, labels in captured.axes(index).items())
        values = array.astype(np.float64)
        norm = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
        rows.append([index, captured.component(index), axes, str(array.dtype), norm])
    return html_table("activations", ["index", "component", "axes", "data type", "root mean square"], rows)


def _causal(result: CausalTracingResult) -> list[str]:
    word, low = _word(result), float(result.corrupted[0])
    peak = max((float(np.nanmax(g[..., 0], initial=low)) for g in result.restored.values()), default=low)
    pieces = [
        note(f"p({word}): {float(result.clean[0]):.3f} clean, {low:.3f} with the starred tokens corrupted"),
        _strip(result, "where restoring one state brings it back", _causal_by_position(result)),
    ]
    for name, grid in result.restored.items():
        windowed = name in _HUES and result.window > 1
        across = f"centre of {result.window} restored layers" if windowed else "restored layer"
        labels = ["-" if layer is None else str(layer) for layer in result.axes[name]["layer"]]
        title = f"{_plain(name)}: p({word})"
        picture = heatmap(
            title,
            result.row_labels(name),
            labels,
            grid[..., 0],
            across=across,
            low=low,
            high=max(peak, low + 1e-6),
            hue=_HUES.get(name, "one"),
        )
        pieces.append(picture)
    header = ["component", "layer", "position", "token", "probability", "effect"]
    cells = [
        [cell.component, cell.layer, cell.position, repr(visible(cell.token)), cell.probability, cell.effect]
        for cell in result.strongest(10)
    ]
    return [*pieces, sortable_table("the strongest states", header, cells)]


def _causal_by_position(result: CausalTracingResult) -> Floats:
    """The effect of the strongest state of each position."""
    values = np.full(len(result.tokens), np.nan, np.float32)
    for name, effect in result.effect.items():
        for row, position in enumerate(result.axes[name]["position"]):
            if isinstance(position, int) and np.isfinite(effect[row, :, 0]).any():
                best = effect[row, np.nanargmax(np.abs(effect[row, :, 0])), 0]
                if not abs(values[position]) >= abs(best):
                    values[position] = best
    return values


def _lens(result: TokenProbabilityResult) -> list[str]:
    word = _word(result)
    has_tops = result.top_token_ids.shape[1:] > (0,)
    tops = [repr(visible(result.top_at(depth, 1)[0].text)) for depth in result.depths] if has_tops else []
    labels = [str(depth) for depth in result.depths]
    title = f"p({word}) read after each block"
    pieces = [curve(title, labels, result.probabilities[:, 0].tolist(), across="after block", tops=tops)]
    if result.gradient_norms is not None:
        norms = result.gradient_norms[..., 0]
        by_position = np.full(len(result.tokens), np.nan, np.float32)
        by_position[list(result.gradient_positions)] = norms[0]
        rows = result.token_labels(result.gradient_positions)
        pieces.insert(0, _strip(result, "gradient at the embeddings", by_position))
        pieces.append(heatmap("gradient norm", rows, labels, norms.T, across="after block", low=0.0))
    header = ["depth", f"p({word})", "rank", "top token"]
    return [*pieces, sortable_table("read after each block", header, result.rows())]


def _attributions(result: AttributionPatchingResult) -> list[str]:
    grids: dict[ComponentName, Floats] = {name: e[..., 0] for name, e in result.estimates.items()}
    grids = {name: g.sum(axis=-1) if g.ndim > _TWO else g for name, g in grids.items()}
    high = max((float(np.nanmax(np.abs(g), initial=1e-12)) for g in grids.values()), default=1.0)
    pieces = []
    for name, grid in grids.items():
        positions = [int(p or 0) for p in result.axes[name]["position"]]
        layers = ["-" if layer is None else str(layer) for layer in result.axes[name]["layer"]]
        title = f"{_plain(name)}: estimated effect"
        pieces.append(heatmap(title, result.token_labels(positions), layers, grid.T, across="layer", high=high))
    header = ["component", "layer", "position", "token", "unit", "estimate"]
    places = [[p.component, p.layer, p.position, repr(p.token), p.unit, p.estimate] for p in result.strongest(LARGEST)]
    edges = [[str(edge.sender), str(edge.receiver), float(edge.estimates[0])] for edge in result.edges[:LARGEST]]
    if places:
        pieces.append(sortable_table("the largest estimates", header, places))
    if edges:
        pieces.append(sortable_table("the largest edges", ["sender", "receiver", "estimate"], edges))
    return [_prompt(result), *pieces]


def _interventions(result: InterventionResult) -> list[str]:
    clean = result.clean
    header = ["place", "target", "unchanged", "changed", "effect (nats)"]
    changes = result.most_changed(min(len(result), MOST_ROWS)) if result.arrived.any() else []
    rows = [[c.place, repr(visible(c.target)), c.clean_probability, c.probability, c.effect] for c in changes]
    shown = f", the {len(rows)} largest changes" if len(rows) < len(result) else ""
    state = "" if result.complete else f", {int(result.arrived.sum()):,} arrived"
    pieces = [note(f"{len(result):,} runs{state}; unchanged p({_word(result)}) = {float(clean.probabilities[0]):.3f}")]
    pieces += _sweep_pictures(result)
    pieces.append(sortable_table(f"what each run did{shown}", header, rows))
    if len(result) == 1 and result.complete:
        pieces += [ranking_html("unchanged", clean.top_tokens), ranking_html("changed", result[0].top_tokens)]
    said = [("unchanged", clean.continuation)]
    said += [(f"run {i}", text) for i, text in enumerate(result.generated[:MOST_ROWS])]
    continued = [[name, text.text] for name, text in said if text is not None]
    return [*pieces, html_table("continuations", ["run", "text"], continued)] if continued else pieces


def _sweep_pictures(result: InterventionResult) -> list[str]:
    """A strip over positions, and a heat map where two axes vary."""
    effect = result.effect[..., 0]
    names = list(result.axes)[:-1]
    pieces = []
    if "position" in names:
        labels = result.axes["position"]
        flat = np.moveaxis(effect, names.index("position"), 0).reshape(len(labels), -1)
        values = np.full(len(result.tokens), np.nan, np.float32)
        for row, label in enumerate(labels):
            if isinstance(label, int) and np.isfinite(flat[row]).any():
                values[label] = flat[row, np.nanargmax(np.abs(flat[row]))]
        if np.isfinite(values).any():
            pieces.append(_strip(result, "the strongest effect at each token, in nats", values))
    long_axes = [name for name in names if len(result.axes[name]) > 1]
    if len(long_axes) == _TWO:
        grid = effect.reshape([len(result.axes[name]) for name in long_axes])
        down, across = long_axes
        if (down, across) in {("layer", "position"), ("unit", "position")}:
            down, across, grid = across, down, grid.T
        title = f"change of log p({_word(result)}), in nats"
        rows = [f"{down} {label}" if down != "position" else label for label in _labels(result, down)]
        pieces.append(heatmap(title, rows, _labels(result, across), grid, across=across))
    return pieces


def _labels(result: InterventionResult, axis: str) -> list[str]:
    labels = result.axes[axis]
    if axis == "position":
        return [result.token_labels([p])[0] if isinstance(p, int) else str(p) for p in labels]
    return [str(label) for label in labels]


def _prompt(result: Result) -> str:
    return token_strip("prompt", [token.text for token in result.tokens], read=result.position)


def _strip(result: Result, title: str, values: Floats) -> str:
    return token_strip(title, [token.text for token in result.tokens], values.tolist(), read=result.position)


def _cost(result: Result) -> str:
    cost = result.cost
    numbers: Sequence[tuple[str, int]] = (
        ("runs", cost.runs),
        ("token layers", cost.token_layers),
        ("in full", cost.full_token_layers),
        ("bytes of the answer", cost.answer_bytes),
    )
    return html_table("dry run: what it would take", ["", ""], [[name, f"{number:,}"] for name, number in numbers])


def _made(result: Result) -> str:
    made = result.provenance
    revision = f" at {made.revision.removeprefix('sha256:')[:12]}" if made.revision else ""
    return note(f"{made.model}{revision}, {made.dtype} on {made.device}, Sonde {made.server_version}")


def _word(result: Result) -> str:
    return visible(result.targets[0].text).strip() or "target" if result.targets else "target"


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("mlp", "MLP")
