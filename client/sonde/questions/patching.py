"""Activation patching between two prompts, measured by the normalised logit difference.

Method: Vig et al. 2020 (arXiv 2004.12265), Wang et al. 2022 (arXiv 2211.00593). Interpretation: Heimersheim and Nanda
2024 (arXiv 2404.15255), Zhang and Nanda 2023 (arXiv 2309.16042).
"""

from sonde._answers.findings import ActivationPatching
from sonde._ask.edits import patch
from sonde._ask.indices import Indices
from sonde._ask.names import AxisName, ComponentName
from sonde._ask.plans import sweep
from sonde._ask.prompts import Prompt, PromptLike, Target, TokenLike
from sonde._ask.sites import site
from sonde.client import Client


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
