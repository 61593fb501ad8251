"""Causal tracing, averaged over many prompts by kind of token (Meng et al. 2022, arXiv 2202.05262, figure 2).

The kinds are those of the authors' script: the first, middle and last tokens of the subject, the first token after it,
further tokens, and the last token of the prompt. The only token of a subject counts as first and as last; a token that
is both the first after the subject and the last of the prompt counts as both.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np

from sonde._answers.average_trace import AverageTrace
from sonde._answers.results import Cost
from sonde._ask.cases import Case, Cases
from sonde._ask.named import span
from sonde._connection.progress import Progress
from sonde._methods.causal_tracing import CausalTracing
from sonde.client import Client
from sonde.errors import InvalidRequest

SUBJECT: Final = "subject"
"""The name of the span that is corrupted."""


def average_causal_trace(
    client: Client, cases: Iterable[Case], *, method: CausalTracing | None = None, progress: Progress = False
) -> AverageTrace:
    """Trace each case whose target the model predicts, and average the results on the server.

    Args:
        client: the client to use.
        cases: the cases to trace, each with one target, and its subject as the span `"subject"`:
            `sonde.Case("The Eiffel Tower is in the city of", targets=" Paris", spans={"subject": "The Eiffel Tower"})`.
        method: the samples, seed, components, window and layers to use; its subject and positions are ignored. None
            uses ROME's defaults.
        progress: True for a line on standard error, or a function that is called with (done, total).

    Raises:
        InvalidRequest: if a case has no target, or no span for its subject.
        ValueError: if the model predicts none of the targets.
    """
    chosen = _checked(cases)
    # A reduction has no top tokens: what each case predicts takes a pass of its own.
    plain = client.trace(chosen, top_k=1)
    used = np.array([one.top(1)[0].id == one.targets[0].id for one in plain], np.bool_)
    traced = [replace(case, group="") for case, known in zip(chosen, used, strict=True) if known]
    if not traced:
        message = f"the model predicts none of the {len(chosen)} targets, so there is nothing to trace"
        raise ValueError(message)
    result = client.trace(Cases(traced), method=_by_role(method), reduce="mean", progress=progress)
    return AverageTrace(result, used)


def average_causal_trace_cost(client: Client, cases: Iterable[Case], *, method: CausalTracing | None = None) -> Cost:
    """The cost of `average_causal_trace`, if the model predicts all targets; nothing is run."""
    return client.trace(_checked(cases), method=_by_role(method), reduce="mean", dry_run=True).cost


def _by_role(method: CausalTracing | None) -> CausalTracing:
    given = CausalTracing() if method is None else method
    # The method stores "all" as an empty tuple, but its constructor accepts only None for it.
    return replace(
        given,
        subject=span(SUBJECT),
        layers=given.layers or None,
        positions=None,
        components=given.components or None,
    )


def _checked(cases: Iterable[Case]) -> Cases:
    chosen = cases if isinstance(cases, Cases) else Cases(cases)
    for number, case in enumerate(chosen):
        if case.targets is None:
            raise InvalidRequest.at(f"cases[{number}]", "expected the target that follows the prompt, got none")
        if SUBJECT not in case.whole_prompt.named_spans:
            raise InvalidRequest.at(f"cases[{number}]", "expected its subject as spans={'subject': ...}, got none")
    return chosen
