"""Results for the shell: text for people, JSON for programs."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np

from sonde._answers.interventions import InterventionResult
from sonde._answers.model import Model
from sonde._answers.predictions import TokenPrediction
from sonde._answers.results import Result
from sonde._arrays import Label, visible
from sonde._ask.sites import Site
from sonde._methods.traces import AttributionPatchingResult, CausalTracingResult, TokenProbabilityResult, TraceResult
from sonde._show.terminal import bar, causal_tracing, table

# ---------------------------------------------------------------------- for people


def model_text(model: Model) -> str:
    """The description of the model."""
    width = max(len(name) for name, _ in model.rows())
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in model.rows())


def trace_text(result: TraceResult, count: int = 10) -> str:
    """A trace, as its method is read best."""
    if result.dry_run:
        return cost_text(result)
    parts = [ranking_text("prediction", list(result.prediction.top_tokens))]
    if isinstance(result, TokenProbabilityResult):
        word = visible(result.targets[0].text)
        rows = [[*row, bar(float(str(row[1])))] for row in result.rows()]
        parts.append(table(["after block", f"p({word!r})", "rank", "top token", ""], rows))
    if isinstance(result, CausalTracingResult):
        parts.append(causal_tracing(result))
        header = ["component", "layer", "position", "token", "probability", "effect"]
        rows = [
            [c.component, c.layer, c.position, repr(visible(c.token)), c.probability, c.effect]
            for c in result.strongest(5)
        ]
        parts.append("restorations with the largest effect\n" + table(header, rows))
    if isinstance(result, AttributionPatchingResult):
        parts += _attributions(result, count)
    return "\n\n".join(parts)


def _attributions(result: AttributionPatchingResult, count: int) -> list[str]:
    parts = []
    if result.estimates:
        header = ["component", "layer", "position", "token", "unit", "estimate"]
        rows = [
            [p.component, _or_dash(p.layer), p.position, repr(visible(p.token)), _or_dash(p.unit), p.estimate]
            for p in result.strongest(count)
        ]
        parts.append("the largest estimates, none of them a measurement\n" + table(header, rows))
    if len(result.edges):
        rows = [[str(edge.sender), str(edge.receiver), float(edge.estimates[0])] for edge in result.edges[:count]]
        parts.append(
            "the largest edges, none of them a measurement\n" + table(["sender", "receiver", "estimate"], rows)
        )
    if result.verified:
        rows = [[_place(one.site), float(one.estimated[0]), float(one.measured[0])] for one in result.verified]
        title = f"really patched; rank correlation {result.rank_correlation():.2f}"
        parts.append(f"{title}\n" + table(["place", "estimated", "measured"], rows))
    return parts


def _place(site: Site) -> str:
    parts = {"layer": site.layers, "unit": site.units, "position": site.positions}
    return " ".join([site.component, *(f"{name} {entries[0]}" for name, entries in parts.items() if entries)])


def _or_dash(label: Label) -> Label:
    return "-" if label is None else label


def interventions_text(result: InterventionResult, count: int) -> str:
    """The changed predictions beside the unchanged one, or the places that matter most."""
    if result.dry_run:
        return cost_text(result)
    parts = []
    if len(result) == 1:
        parts.append(_beside(result))
    else:
        places = ["run"] if "run" in result.axes else ["layer", "unit", "position"]
        header = [*places, "target", "unchanged", "changed", "effect (nats)"]
        rows = []
        for c in result.most_changed(count):
            place = [c.run] if "run" in result.axes else [c.layer, c.unit, c.position]
            rows.append([*place, repr(visible(c.target)), c.clean_probability, c.probability, c.effect])
        parts.append(f"{len(result):,} runs, the {len(rows)} largest changes first\n" + table(header, rows))
    said = [("unchanged", result.clean.continuation)]
    said += [(f"run {i}" if len(result) > 1 else "changed", text) for i, text in enumerate(result.generated)]
    parts += [f"{name}: {text.text!r}" for name, text in said if text is not None]
    return "\n\n".join(parts)


def ranking_text(title: str, tokens: list[TokenPrediction]) -> str:
    """The most probable tokens as bars."""
    rows = [[repr(visible(t.text)), t.probability, bar(t.probability)] for t in tokens]
    return table([title, "p", ""], rows)


def cost_text(result: Result) -> str:
    """What a dry run found."""
    cost = result.cost
    saved = f", of {cost.full_token_layers:,} in full" if cost.full_token_layers else ""
    return f"{cost.runs:,} runs, {cost.token_layers:,} token-layers{saved}; an answer of {cost.answer_bytes:,} bytes"


def _beside(result: InterventionResult) -> str:
    changed, clean = result[0], result.clean
    rows = [
        [repr(visible(t.text)), float(before), float(after), float(effect)]
        for t, before, after, effect in zip(
            result.targets, clean.probabilities, changed.probabilities, changed.effect, strict=True
        )
    ]
    measured = table(["target", "unchanged", "changed", "effect (nats)"], rows)
    pairs = zip(clean.top_tokens, changed.top_tokens, strict=False)
    ranks = [[repr(visible(a.text)), a.probability, repr(visible(b.text)), b.probability] for a, b in pairs]
    return measured + "\n\n" + table(["unchanged top", "p", "changed top", "p"], ranks)


# ---------------------------------------------------------------------- for programs


def model_json(model: Model) -> dict[str, Any]:
    """The description of the model."""
    return asdict(model)


def result_json(result: Result) -> dict[str, Any]:
    """Everything in a result that is not empty, arrays as nested lists; NaN and infinity become null."""
    return {name: entry for name, entry in _fields(result).items() if entry not in (None, [], {})}


def _fields(value: Any) -> dict[str, Any]:
    plain = {f.name.removeprefix("_"): _plain(getattr(value, f.name)) for f in fields(value) if f.name != "_texts"}
    if isinstance(value, TokenPrediction):
        plain["probability"] = value.probability
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
