"""Attribution patching: what patching each place from another prompt would do, to first order.

Nanda, "Attribution Patching: Activation Patching At Industrial Scale" (2023); Kramar, Lieberum, Shah, Nanda, "AtP*"
(2024, arXiv 2403.00745). The estimate for a place is (source - prompt) . d metric / d place, the gradient taken in the
prompt's run: what the metric would change by were the model linear. On request:

- integration_steps m: the mean of the gradients at m points (k + 1/2) / m of the straight line between the token
  embeddings of the prompt and the source, the midpoint rule (Sundararajan et al. 2017; Hanna et al. 2024).
- recompute_softmax: at queries and keys, the change of the pattern itself times the pattern's gradient.
- drop_layers (GradDrop): sum over layers l of |estimate with no gradient through what block l writes|, by L - 1.
- edges: the same for what one component writes and another reads (`attribution_edges`).

Gradients go down block by block (`engine.gradients`), and every block is a turn of its own on the model's thread.

What it costs, in positions x blocks: the runs of both prompts; then, for the positions up to the one that is read,
each block once with its graph and once backwards for each target, and the source's values once. With several steps,
each has its own run and its own way down, and the prompt's values are computed once as well. Dropping layers takes,
in block l, L - l backward passes a target. Of the places that are verified only the most that they can take is known
before. Products for edges are not blocks, and not counted.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Answer, Context, Cost, Floats, VerifiedEffect
from ..questions.attribution_patching import AttributionPatching
from ..questions.costs import attribution_bytes
from ..questions.extents import Extent, extent_of
from ..questions.kernels import attention_of
from ..questions.places import PAIRWISE, Site
from ..questions.prompts import Metric
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .attribution.estimates import Estimation, bottom
from .prediction import numbers, predict


def answer(question: TraceQuestion, method: AttributionPatching, session: Session) -> Iterator[Answer]:
    """Context, the progress, then the estimates component by component, the edges, and what was verified."""
    tokens, position = question.prompt.tokens, question.position
    cost = _cost(question, method, session)
    pairs = method.recompute_softmax or not PAIRWISE.isdisjoint(method.components)
    attention = attention_of(session.engine.decoder.attention, _restarts(question, method, session), pairs=pairs)
    if question.dry_run:
        yield Context(tokens, question.targets, position, None, cost, attention)
        return
    base = session.states([Base(tokens)], read=position)[0]
    source = session.states([Base(method.source.tokens)])[0]
    targets, clean = predict(session, base, question.targets, position, question.top_k)
    yield Context(tokens, targets, position, clean, cost, attention)
    estimation = Estimation(method, targets, position, session, base, source)
    yield from estimation.run()
    for component in method.components:
        yield from estimation.estimates.parts(component)
    if estimation.edges is not None:
        yield estimation.edges.answer(method.edges or 0, method.integration_steps)
    if method.verify_top:
        places = estimation.estimates.largest(method.verify_top)
        yield from _verified(places, method.metric, session, base, source, Reading(position, targets))


def _verified(
    places: list[tuple[Site, Floats]], metric: Metric, session: Session, base: State, source: State, reading: Reading
) -> Iterator[VerifiedEffect]:
    """Patches each place for itself, and says by how much the metric moved."""
    captures = tuple(Capture(site.component, site.layers[0], site.positions or (), site.units) for site, _ in places)
    values = session.values(source, captures)
    before = _metric(session.read([base], reading)[0], metric)
    runs = (
        Run(base, [PlacedEdit(one.component, one.layer, one.positions, one.units, Change("set", value))], reading)
        for one, value in zip(captures, values, strict=True)
    )
    for (site, estimated), result in zip(places, session.run(runs), strict=True):
        yield VerifiedEffect(site, estimated, (_metric(result, metric) - before).astype(np.float32))


def _metric(result: Result, metric: Metric) -> NDArray[np.float64]:
    """By target, the number that is differentiated."""
    if metric is Metric.LOGIT:
        return numbers(result.logits).astype(np.float64)
    values = numbers(result.log_probabilities).astype(np.float64)
    return values if metric is Metric.LOG_PROBABILITY else np.exp(values)


def _cost(question: TraceQuestion, method: AttributionPatching, session: Session) -> Cost:
    tokens, source = question.prompt.tokens, method.source.tokens
    layers, length, targets = session.engine.layers, question.position + 1, max(1, len(question.targets))
    full = len(tokens) * layers
    blocks = layers - bottom(method, layers)
    backward = blocks * (blocks + 1) // 2 if method.drop_layers else blocks
    work = full + (full if source != tokens else 0)
    work += method.integration_steps * length * (blocks + backward * targets)
    if method.integration_steps > 1:
        differing = [number for number, pair in enumerate(zip(tokens, source, strict=True)) if pair[0] != pair[1]]
        work += method.integration_steps * (len(tokens) - min(differing, default=len(tokens))) * layers
    if method.inside:
        work += length * layers * (2 if method.integration_steps > 1 else 1)
    if method.verify_top:
        work += _most(method, question, layers)
    runs = method.runs(targets, layers)
    return Cost(runs, work, runs * full, attribution_bytes(method, len(tokens), targets, session.engine.decoder))


def _restarts(question: TraceQuestion, method: AttributionPatching, session: Session) -> list[Extent]:
    """What restarts from kept keys: the runs between the prompts, and of what verifies a place the shortest."""
    tokens, source, layers = question.prompt.tokens, method.source.tokens, session.engine.layers
    differing = [number for number, pair in enumerate(zip(tokens, source, strict=True)) if pair[0] != pair[1]]
    found = []
    if method.integration_steps > 1 and differing:
        found.append(Extent.whole(layers, len(tokens), differing[0]))
    if method.verify_top:
        read, nothing = question.position, Change("multiply", 1.0)
        for component in method.components:
            edits = [PlacedEdit(component, 0, (read,), None, nothing)]
            found.append(extent_of(edits, (), read, len(tokens), layers))
    return found


def _most(method: AttributionPatching, question: TraceQuestion, layers: int) -> int:
    """What verifying takes at most: every place in the lowest block at the first position, the source's values all."""
    tokens, nothing = len(question.prompt.tokens), Change("multiply", 1.0)
    runs = []
    for component in method.components:
        edits = [PlacedEdit(component, 0, (0,), None, nothing)]
        runs.append(extent_of(edits, (), question.position, tokens, layers).token_layers)
    return method.verify_top * max(runs) + tokens * layers
