"""How a prediction forms: the logit lens by depth, and gradient norms by depth and position.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") applies the final norm, with statistics
of its own, and the unembedding to the residual stream at every depth; at the last depth it is the model. The
gradient norm is || d metric / d stream[depth, position] ||_2 of a true backward pass, which runs each block again
up to the position that is read, and once backwards for every target.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from ..engine import Base, State
from ..engine.gradients import Descent
from ..questions.answers import Answer, Context, Cost, Floats, LayerReadings
from ..questions.prompts import Metric, Target
from ..questions.token_probability import TokenProbability
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .prediction import attention_for, numbers, predict


def answer(question: TraceQuestion, method: TokenProbability, session: Session) -> Iterator[Answer]:
    """Context, then one LayerReadings over all depths."""
    engine, tokens, position = session.engine, question.prompt.tokens, question.position
    depths = engine.layers + 1
    columns = max(1, len(question.targets))
    size = 4 * depths * (3 * columns + 1 + 2 * question.top_k)
    if method.gradient_norms:
        size += 4 * depths * len(tokens) * columns
    passes = 2 + columns if method.gradient_norms else 1
    full = len(tokens) * engine.layers
    cost = Cost(passes, full + (passes - 1) * (position + 1) * engine.layers, passes * full, size)
    if question.dry_run:
        yield Context(tokens, question.targets, position, None, cost, attention_for(()))
        return
    state = session.states([Base(tokens)], read=position)[0]
    targets, clean = predict(session, state, question.targets, position, question.top_k)
    yield Context(tokens, targets, position, clean, cost, attention_for(()))
    lens = session.call(lambda: engine.lens(state, position, targets, question.top_k), positions=engine.layers)
    log_probabilities, logits, ranks, divergences, top_tokens, top_log_probabilities = lens
    norms = None
    if method.gradient_norms:
        norms = _gradient_norms(session, state, position, targets, method.metric)
    yield LayerReadings(
        tuple(range(depths)),
        numbers(log_probabilities),
        numbers(logits),
        ranks.numpy(),
        numbers(divergences),
        top_tokens.numpy(),
        numbers(top_log_probabilities),
        norms,
        tuple(range(len(tokens))) if norms is not None else (),
    )


def _gradient_norms(
    session: Session, state: State, position: int, targets: tuple[Target, ...], metric: Metric
) -> Floats:
    """L2 norm of d metric(target) / d stream, [depths, positions, targets]; 0 after the position that is read."""
    descent = Descent(session.engine.decoder, session.engine.work, state, position + 1)
    gradient = session.call(lambda: descent.top(targets, metric)).below
    norms = np.zeros((session.engine.layers + 1, len(state.tokens), len(targets)), np.float32)
    for depth in range(session.engine.layers, -1, -1):
        norms[depth, : position + 1] = numbers(gradient.float().norm(dim=-1).T.cpu())
        if depth:
            block = partial(descent.block, depth - 1, gradient, frozenset())
            gradient = session.call(block).below
    return norms
