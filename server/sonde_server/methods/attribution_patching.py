"""Attribution patching: what patching each place from another prompt would do, to first order.

Nanda, "Attribution Patching: Activation Patching At Industrial Scale" (2023); Kramar, Lieberum, Shah, Nanda, "AtP*"
(2024, arXiv 2403.00745). The estimate for a place is (source - prompt) . d metric / d place, the gradient taken in the
prompt's run. It is exact where the model is linear. On request:

- integration_steps m: the mean of the gradients at m points (k + 1/2) / m of the straight line between the token
  embeddings of the prompt and the source, the midpoint rule (Sundararajan et al. 2017; Hanna et al. 2024).
- recompute_softmax: at queries and keys, the change of the pattern itself times the pattern's gradient.
- drop_layers (GradDrop): sum over layers l of |estimate with no gradient through what block l writes|, by L - 1.
- integration ENDS: the mean of the gradients in the prompt's run and in the source's. ACTIVATIONS: the mean along the
  line between each sender's own values (`attribution.activations`).
- edges: the same for what one component writes and another reads (`attribution.edges`).

Gradients are computed block by block (`engine.gradients`). Every block is a call of its own on the model's thread, so
that other questions get their turns in between.
"""

from collections.abc import AsyncGenerator

import numpy as np
from numpy.typing import NDArray

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Answer, Floats
from ..questions.attribution_patching import AttributionPatching, Integration, VerifiedEffect
from ..questions.places import Site
from ..questions.prompts import Metric, content_of
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .attribution.activations import Activations
from .attribution.estimates import Estimation
from .opening import Clean
from .prediction import numbers


async def parts(
    question: TraceQuestion, method: AttributionPatching, session: Session, clean: Clean
) -> AsyncGenerator[Answer, None]:
    """The progress, then the estimates component by component, the edges, and what was verified."""
    same = content_of(method.source) == content_of(question.prompt)
    source = clean.state if same else (await session.states([Base.of(method.source)]))[0]
    if method.integration is Integration.ACTIVATIONS:
        turns = Activations(method, clean.targets, clean.position, session, clean.state, source)
        async for progress in turns.run():
            yield progress
        yield turns.edges.answer(method.edges or 0, method.passes)
        return
    estimation = Estimation(method, clean.targets, clean.position, session, clean.state, source)
    async for progress in estimation.run():
        yield progress
    for component in method.components:
        for estimates in estimation.estimates.parts(component):
            yield estimates
    if estimation.edges is not None:
        yield estimation.edges.answer(method.edges or 0, method.passes)
    if method.verify_top:
        places = estimation.estimates.largest(method.verify_top)
        reading = Reading(clean.position, clean.targets)
        async for effect in _verified(places, method.metric, session, clean.state, source, reading):
            yield effect


async def _verified(
    places: list[tuple[Site, Floats]], metric: Metric, session: Session, base: State, source: State, reading: Reading
) -> AsyncGenerator[VerifiedEffect, None]:
    """Patches each place alone, and measures how far the metric moves."""
    captures = tuple(Capture(site.component, site.layers[0], site.positions or (), site.units) for site, _ in places)
    values = await session.values(source, captures)
    before = _metric((await session.read([base], reading))[0], metric)
    runs = (
        Run(base, [PlacedEdit(one.component, one.layer, one.positions, one.units, Change("set", value))], reading)
        for one, value in zip(captures, values, strict=True)
    )
    results = session.run(runs)
    for site, estimated in places:
        (result,) = await results.take(1)
        yield VerifiedEffect(site, estimated, (_metric(result, metric) - before).astype(np.float32))


def _metric(result: Result, metric: Metric) -> NDArray[np.float64]:
    """By target, the number that is differentiated."""
    if metric is Metric.LOGIT:
        return numbers(result.logits).astype(np.float64)
    values = numbers(result.log_probabilities).astype(np.float64)
    return values if metric is Metric.LOG_PROBABILITY else np.exp(values)
