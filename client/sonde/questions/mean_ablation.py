"""Mean ablation: replace the output of a component by its mean over a data set (Wang et al. 2022, arXiv 2211.00593).

The mean is over all positions of all prompts, which may differ in length. For the mean at each position, over prompts
of the same form, patch from them: `sonde.patch(site, prompts)`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace as with_fields

import numpy as np

from sonde._answers.captured import Captured
from sonde._answers.interventions import InterventionResult
from sonde._arrays import Floats
from sonde._ask.cases import Cases
from sonde._ask.edits import Edit, replace
from sonde._ask.given import several
from sonde._ask.names import COMPONENT_AXES
from sonde._ask.prompts import PromptLike, Targets
from sonde._ask.sites import Site
from sonde._methods.activations import Activations
from sonde.client import Client
from sonde.errors import InvalidRequest


def mean_activation(client: Client, prompts: Iterable[PromptLike], site: Site) -> Floats:
    """Return the mean activation at a site, over all tokens of all prompts: [layer, ...], without the position axis.

    Special tokens that the tokenizer adds are included. To leave tokens out, give the site positions.

    Raises:
        InvalidRequest: if there are no prompts, or the site's component has an axis of keys.
    """
    if "key" in COMPONENT_AXES[site.component]:
        raise InvalidRequest.at("site", f"expected a component without an axis of keys, got {site.component}")
    cases = Cases(several(prompts, "prompts", "a list of prompts"))
    reduced = client.trace(cases, method=Activations(site), top_k=0, reduce="mean")
    return _over_rows(reduced.mean.activations, reduced.counts.activations)


def _over_rows(means: Captured, counts: Captured) -> Floats:
    """The mean over the rows of a reduction, each weighed by how many values it is over."""
    axis = list(means.axes(0)).index("position")
    weights = np.nan_to_num(counts[0].astype(np.float64))
    total = (np.nan_to_num(means[0].astype(np.float64)) * weights).sum(axis)
    mean: Floats = (total / weights.sum(axis)).astype(np.float32)
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
    """Replace the activations at a site by their mean over `prompts`, in the run of `prompt`.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        prompts: the data set for the mean.
        site: the site to ablate, which must name its layers. Its positions are those in `prompt`; none means all.
        separately: make one run per layer and unit of the site, ordered by layer, instead of one run for all.
        targets: the tokens to measure.
        top_k: how many of the most probable tokens to return for each run.
    """
    if not site.layers:
        raise InvalidRequest.at("site", "expected a site that names its layers, got none")
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
