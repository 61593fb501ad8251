"""Directions in the residual stream: found from pairs of prompts, added, or removed everywhere.

Turner et al. 2023 (activation addition, arXiv 2308.10248), Rimsky et al. 2024 (contrastive activation addition, the
mean over many pairs, arXiv 2312.06681), Arditi et al. 2024 (directional ablation, arXiv 2406.11717).
"""

from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from sonde._answers.findings import SteeringStrengths
from sonde._arrays import Floats
from sonde._ask.cases import Case, Cases
from sonde._ask.edits import Edit, add, project_out
from sonde._ask.given import array, is_real, number, refusal, several
from sonde._ask.indices import Indices, index
from sonde._ask.named import PositionLike
from sonde._ask.names import ComponentName
from sonde._ask.plans import Generation
from sonde._ask.prompts import PromptLike, Targets
from sonde._ask.sites import residual, site
from sonde._connection.progress import Progress
from sonde._methods.activations import Activations
from sonde.client import Client


def steering_vector(
    client: Client,
    pairs: Iterable[tuple[PromptLike, PromptLike]],
    *,
    layers: Indices = None,
    position: PositionLike = -1,
    component: ComponentName = "residual_post",
    progress: Progress = False,
) -> Floats:
    """Return the mean over pairs of the positive minus the negative activation: [layer, D], not normalised.

    Args:
        client: the client to use.
        pairs: prompts that differ in what the direction should represent, the positive one first.
        layers: the blocks to read; None means all.
        position: the position to read; negative ones count from the end, since prompts may differ in length. A name
            (see `sonde.span`) is that of a span that every prompt has.
        component: the component to read.
        progress: True for a line on standard error, or a function that is called with (done, total).
    """
    expected = "at least one pair of prompts (positive, negative)"
    couples = [several(pair, "pairs", expected) for pair in several(pairs, "pairs", expected)]
    if not couples or any(len(couple) != 2 for couple in couples):
        raise refusal("pairs", expected, pairs)
    cases = [
        Case(prompt, group=side) for couple in couples for prompt, side in zip(couple, ("for", "against"), strict=True)
    ]
    method = Activations(site(component, layers=layers, positions=[position]))
    groups = client.trace(Cases(cases), method=method, top_k=0, reduce="mean", progress=progress).groups
    towards, against = (groups[side].mean.activations for side in ("for", "against"))
    # One row, because only one position was requested.
    row = list(towards.axes(0)).index("position")
    differences: Floats = (
        (towards[0].astype(np.float64) - against[0].astype(np.float64)).squeeze(row).astype(np.float32)
    )
    return differences


def steer(
    vector: npt.ArrayLike, *, layer: SupportsIndex, coefficient: float = 1.0, from_position: PositionLike = 0
) -> Edit:
    """Return an edit that adds a direction after one block, at `from_position` and all later positions.

    `from_position="end"` begins at the last token of the prompt.
    """
    direction = array(vector, "vector")
    if not is_real(direction):
        raise refusal("vector", "an array of real numbers", vector)
    scaled = number(coefficient, "coefficient") * direction.astype(np.float32)
    return add(residual(layer=[layer], from_position=from_position), scaled)


def steering_strengths(
    client: Client,
    prompt: PromptLike,
    vector: npt.ArrayLike,
    *,
    layer: SupportsIndex,
    strengths: Iterable[float],
    targets: Targets = None,
    from_position: PositionLike = 0,
    generation: Generation | None = None,
) -> SteeringStrengths:
    """Add a direction with several strengths, one run for each, and measure what each does; see its `plot()`.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        vector: the direction: [D].
        layer: the block after which it is added.
        strengths: the factors with which it is added; negative ones subtract it.
        targets: the tokens to measure; None measures the unchanged run's own top prediction.
        from_position: where it is added: at this position and all later ones, including generated ones. It can be a
            name, as `"end"`.
        generation: let every run generate text too.
    """
    factors = [number(one, "strengths") for one in several(strengths, "strengths", "a list of numbers")]
    plan = {
        f"strength {factor:g}": steer(vector, layer=layer, coefficient=factor, from_position=from_position)
        for factor in factors
    }
    if len(plan) != len(factors):
        raise refusal("strengths", "different numbers", factors)
    result = client.intervene(prompt, plan, targets=targets, generation=generation, top_k=5)
    return SteeringStrengths(tuple(factors), result.effect, result)


def directional_ablation(direction: npt.ArrayLike, layers: int) -> list[Edit]:
    """Return edits that remove a direction from everything written to the residual stream, at all positions.

    This covers the embedding, and attention and MLP in each of the model's `layers` blocks, like orthogonalising their
    weights. It applies to generated tokens too. The length of the direction does not matter.
    """
    every = range(index(layers, "layers"))
    writers = [
        site("residual_pre", layers=[0], from_position=0),
        site("attention_out", layers=every, from_position=0),
        site("mlp_out", layers=every, from_position=0),
    ]
    return [project_out(writer, direction) for writer in writers]
