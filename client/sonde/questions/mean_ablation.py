"""Mean ablation: a component gives what it gives on average over a data set, whatever the prompt.

Wang et al. 2022 (arXiv 2211.00593). The mean here is over all positions of all prompts, which may differ in length.
For the mean at each position, over prompts of the same form, patch from them: `sonde.patch(site, prompts)`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace as with_fields

import numpy as np

from sonde._answers.interventions import InterventionResult
from sonde._arrays import Floats
from sonde._ask.edits import Edit, replace
from sonde._ask.given import several
from sonde._ask.names import COMPONENT_AXES
from sonde._ask.prompts import PromptLike, Targets
from sonde._ask.sites import Site
from sonde._methods.activations import Activations
from sonde.client import Client
from sonde.errors import InvalidRequest
from sonde.questions.pipeline import each


def mean_activation(client: Client, prompts: Iterable[PromptLike], site: Site) -> Floats:
    """The mean over all tokens of all prompts of what a site reads: [layer, ...], without the axis of positions.

    Special tokens that the tokenizer adds count as all others do; give the site positions to leave some out.
    """
    if "key" in COMPONENT_AXES[site.component]:
        raise InvalidRequest.at("site", f"{site.component} has other keys in every prompt, so it has no mean over them")
    method = Activations(site)

    def read(prompt: PromptLike) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.float64]]", int]:
        activations = client.trace(prompt, method=method, top_k=0).activations
        values = activations[0].astype(np.float64)
        positions = list(activations.axes(0)).index("position")
        return values.sum(positions), values.shape[positions]

    sums = list(each(read, several(prompts, "prompts", "a list of prompts")))
    if not sums:
        raise InvalidRequest.at("prompts", "it is empty; give at least one")
    total = np.sum([values for values, _ in sums], axis=0)
    mean: Floats = (total / sum(count for _, count in sums)).astype(np.float32)
    return mean


def mean_ablation(
    client: Client,
    prompt: PromptLike,
    prompts: Iterable[PromptLike],
    site: Site,
    *,
    separately: bool = False,
    targets: Targets = None,
    top_k: int = 10,
) -> InterventionResult:
    """Put a site's mean over `prompts` in its place, in the run of `prompt`.

    Args:
        client: whom to ask.
        prompt: what is run.
        prompts: the data set.
        site: what is ablated; it names its layers. Its positions are those of `prompt`; none: all.
        separately: one run per layer and unit of the site, layers first, instead of one for all.
        targets: the tokens to measure.
        top_k: how many of the most probable tokens come with every run.
    """
    if not site.layers:
        raise InvalidRequest.at("site", "it names no layer; an edit names those it changes")
    mean = mean_activation(client, prompts, with_fields(site, positions=(), from_position=None))
    edits: list[list[Edit]] = []
    for layer, values in zip(site.layers, mean, strict=True):
        one = with_fields(site, layers=(layer,))
        if separately and site.units:
            edits.append([])
            for unit, value in zip(site.units, values, strict=True):
                edits[-1].append(replace(with_fields(one, units=(unit,)), value[None]))
        else:
            edits.append([replace(one, values)])
    flat: Sequence[Edit] = [edit for layer in edits for edit in layer]
    plan = list(flat) if separately else [flat]
    return client.intervene(prompt, plan, targets=targets, top_k=top_k)
