"""Causal tracing, averaged over many prompts by kind of token (Meng et al. 2022, arXiv 2202.05262, figure 2).

The kinds are those of the authors' script: the first, middle and last tokens of the subject, the first token after it,
further tokens, and the last token of the prompt. The only token of a subject counts as first and as last; a token that
is both the first after the subject and the last of the prompt counts as both.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sonde._answers.average_trace import TOKEN_CLASSES, AverageTrace
from sonde._arrays import Floats
from sonde._ask.names import ComponentName
from sonde._ask.prompts import PromptLike, TokenLike
from sonde._methods.causal_tracing import CausalTracing, CausalTracingResult
from sonde.client import Client
from sonde.questions.pipeline import AT_ONCE, each


@dataclass(frozen=True)
class Case:
    """A prompt, its subject (as text or positions), and the token that should follow the prompt."""

    prompt: PromptLike
    subject: str | Sequence[int]
    target: TokenLike


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
        found[0].provenance,
    )
