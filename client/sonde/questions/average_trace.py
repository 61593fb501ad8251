"""Causal tracing, averaged over many prompts by kind of token (Meng et al. 2022, arXiv 2202.05262, figure 2).

The kinds are those of the authors' script: the first, middle and last tokens of the subject, the first token after it,
further tokens, and the last token of the prompt. The only token of a subject counts as first and as last; a token that
is both the first after the subject and the last of the prompt counts as both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from sonde._arrays import Booleans, Floats, Integers, Label
from sonde._ask.names import ComponentName
from sonde._ask.prompts import PromptLike, TokenLike
from sonde._methods.causal_tracing import CausalTracing, CausalTracingResult
from sonde._show import plotting
from sonde._show.palette import look
from sonde.client import Client
from sonde.questions.pipeline import AT_ONCE, each

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

TOKEN_CLASSES: Final = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


@dataclass(frozen=True)
class Case:
    """A prompt, its subject (as text or positions), and the token that should follow the prompt."""

    prompt: PromptLike
    subject: str | Sequence[int]
    target: TokenLike


@dataclass(frozen=True, eq=False)
class AverageTrace:
    """The average indirect effect of restoring each kind of token at each layer, by component."""

    effects: Mapping[ComponentName, Floats]
    """[class, layer]: restored minus corrupted probability, averaged over tokens; NaN if no prompt has such a token."""
    deviations: Mapping[ComponentName, Floats]
    """[class, layer]: the standard deviation over tokens."""
    layers: Mapping[ComponentName, tuple[Label, ...]]
    """The labels of the layer axis."""
    counts: Integers
    """[class]: the number of tokens."""
    used: Booleans
    """[case]: whether the model predicted the target; other cases are not traced."""
    clean: float
    """The mean probability of the targets in the unchanged runs of the traced cases."""
    corrupted: float
    """The mean probability in the corrupted runs; `clean` minus this is the average total effect."""

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw figure 2 of the paper, one panel per component, and save it if a path is given (needs matplotlib).

        All panels share one scale, which begins at zero.
        """
        labels = [f"{name} ({count:,})" for name, count in zip(TOKEN_CLASSES, self.counts, strict=True)]
        panels = [
            plotting.Panel(
                look(name).title,
                effects,
                labels,
                self.layers[name],
                look(name).colour_map,
                "restored layer, or the centre of several",
            )
            for name, effects in self.effects.items()
        ]
        high = max((float(np.nanmax(effects, initial=0.0)) for effects in self.effects.values()), default=0.0)
        title = (
            f"Average indirect effect over {int(self.used.sum()):,} prompts: "
            f"{self.clean:.3f} clean, {self.corrupted:.3f} corrupted"
        )
        return plotting.save(plotting.panels(panels, 0.0, max(high, 1e-6), title=title), path)


def average_causal_trace(
    client: Client,
    cases: Iterable[Case],
    *,
    method: CausalTracing | None = None,
    at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] | None = None,
) -> AverageTrace:
    """Trace each case whose target the model predicts, and average the results.

    Args:
        client: the client to use.
        cases: the cases to trace.
        method: the samples, seed, components, window and layers to use; its subject and positions are ignored. None
            uses ROME's defaults.
        at_once: the number of concurrent requests.
        progress: called with (done, total) after each case.

    Raises:
        ValueError: if the model predicts none of the targets.
    """
    chosen = list(cases)
    method = CausalTracing() if method is None else method

    def trace(case: Case) -> CausalTracingResult | None:
        plain = client.trace(case.prompt, targets=[case.target], top_k=1)
        if plain.top(1)[0].id != plain.targets[0].id:
            return None
        # The method stores "all" as an empty tuple, but its constructor accepts only None for it.
        one = replace(
            method,
            subject=case.subject,
            layers=method.layers or None,
            positions=None,
            components=method.components or None,
        )
        return client.trace(case.prompt, targets=[case.target], method=one, top_k=0)

    results: list[CausalTracingResult | None] = []
    for result in each(trace, chosen, at_once):
        results.append(result)
        if progress is not None:
            progress(len(results), len(chosen))
    return _average(results)


def token_classes(subject: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the positions of each of TOKEN_CLASSES in a prompt with this number of tokens."""
    first, last, end = min(subject), max(subject), tokens - 1
    after = [] if last == end else [last + 1]
    return [[first], list(range(first + 1, last)), [last], after, list(range(last + 2, end)), [end]]


def _average(results: Sequence[CausalTracingResult | None]) -> AverageTrace:
    found = [result for result in results if result is not None]
    if not found:
        message = f"the model predicts none of the {len(results)} targets, so there is nothing to trace"
        raise ValueError(message)
    places = [token_classes(result.corrupted_positions, len(result.tokens)) for result in found]
    effects: dict[ComponentName, Floats] = {}
    deviations: dict[ComponentName, Floats] = {}
    for name in found[0].effect:
        means, spreads = [], []
        for kind in range(len(TOKEN_CLASSES)):
            grids = [result.effect[name][where[kind], :, 0] for result, where in zip(found, places, strict=True)]
            rows = np.concatenate(grids).astype(np.float64)
            nothing = np.full(rows.shape[1], np.nan)
            means.append(rows.mean(0) if len(rows) else nothing)
            spreads.append(rows.std(0) if len(rows) else nothing)
        effects[name] = np.array(means, np.float32)
        deviations[name] = np.array(spreads, np.float32)
    return AverageTrace(
        effects,
        deviations,
        {name: found[0].axes[name]["layer"] for name in effects},
        np.array([sum(len(where[kind]) for where in places) for kind in range(len(TOKEN_CLASSES))]),
        np.array([result is not None for result in results]),
        float(np.mean([result.clean[0] for result in found])),
        float(np.mean([result.corrupted[0] for result in found])),
    )
