"""Activation patching between two prompts, measured by the normalised logit difference.

Method: Vig et al. 2020 (arXiv 2004.12265), Wang et al. 2022 (arXiv 2211.00593). Interpretation: Heimersheim and Nanda
2024 (arXiv 2404.15255), Zhang and Nanda 2023 (arXiv 2309.16042).
"""

from dataclasses import replace

from sonde._answers.average_patching import AveragePatching
from sonde._answers.findings import ActivationPatching
from sonde._ask.cases import Case, Cases, CasesLike, as_cases
from sonde._ask.edits import patch
from sonde._ask.indices import Indices
from sonde._ask.named import PositionsLike
from sonde._ask.names import AxisName, ComponentName
from sonde._ask.plans import sweep
from sonde._ask.prompts import Prompt, PromptLike, Target, TokenLike
from sonde._ask.sites import site
from sonde._connection.progress import Progress
from sonde.client import Client
from sonde.errors import InvalidRequest


def activation_patching(  # noqa: PLR0913 - the two prompts, the two answers, and a sweep by keyword
    client: Client,
    clean: PromptLike,
    corrupted: PromptLike,
    answer: TokenLike,
    wrong: TokenLike,
    *,
    component: ComponentName = "residual_post",
    layers: Indices = None,
    units: Indices = None,
    positions: Indices = None,
    together: AxisName | tuple[AxisName, ...] = (),
) -> ActivationPatching:
    """Patch the clean prompt's activations, place by place, into the run of the corrupted prompt (denoising).

    The score is (LD - LD corrupted) / (LD clean - LD corrupted), where LD is the logit of `answer` minus that of
    `wrong`. For noising, exchange the two prompts; the score then says how much of the answer is lost.

    Raises:
        ValueError: if both prompts have the same logit difference, so that there is nothing to restore.
    """
    target = Target(answer, wrong)
    source = clean if isinstance(clean, str | Prompt) else Prompt(clean)
    plan = sweep(patch(site(component), source), layers=layers, units=units, positions=positions, together=together)
    result = client.intervene(corrupted, plan, targets=[target], top_k=0)
    high = float(client.trace(clean, targets=[target], top_k=0).prediction.logits[0])
    low = float(result.clean.logits[0])
    if high == low:
        message = f"expected prompts with different answers, but both have the logit difference {high:.4g}"
        raise ValueError(message)
    axes = {name: labels for name, labels in result.axes.items() if name != "target"}
    return ActivationPatching((result.logits[..., 0] - low) / (high - low), axes, high, low, result)


def average_activation_patching(
    client: Client,
    pairs: CasesLike,
    *,
    component: ComponentName = "residual_post",
    layers: Indices = None,
    units: Indices = None,
    positions: PositionsLike = None,
    together: AxisName | tuple[AxisName, ...] = (),
    progress: Progress = False,
) -> AveragePatching:
    """Patch the activations of clean prompts, place by place, into the runs of corrupted ones; average over the pairs.

    Heads at the last token, as in Wang et al. 2022: `component="head_out", positions="end"`.

    Args:
        client: the client to use.
        pairs: the corrupted prompts, each with its clean one as its only source, and one target (answer, wrong):
            `sonde.Case(corrupted, sources=[clean], targets=[(" Mary", " John")])`.
        component: the component to patch.
        layers: the layers to patch; None means all.
        units: the heads or neurons to patch; None means all.
        positions: the positions to patch, by number or, in prompts of unequal length, by name.
        together: axes that each run patches as a whole.
        progress: True for a line on standard error, or a function that is called with (done, total).

    Raises:
        InvalidRequest: if a pair has no source or no target.
        ValueError: if both prompts have the same logit difference on average, so that there is nothing to restore.
    """
    cases = as_cases(pairs)
    assert cases is not None
    for number, case in enumerate(cases):
        if len(case.prompts_from) != 1 or case.targets is None:
            raise InvalidRequest.at(f"cases[{number}]", "expected one source and a target (answer, wrong)")
    alike = Cases(replace(case, group="") for case in cases)
    sources = Cases(Case(case.prompts_from[0], targets=case.targets) for case in alike)
    clean = float(client.trace(sources, reduce="mean").mean.prediction.logits[0])
    plan = sweep(patch(site(component), 0), layers=layers, units=units, positions=positions, together=together)
    found = AveragePatching(client.intervene(alike, plan, reduce="mean", progress=progress), clean)
    if found.clean == found.corrupted:
        message = f"expected prompts with different answers, but both have the logit difference {found.clean:.4g}"
        raise ValueError(message)
    return found
