"""How a prediction forms: the logit lens by depth, and gradient norms by depth and position.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") applies the final norm, whose statistics it
computes at each depth, and the unembedding to the residual stream. At the last depth it is the model's own prediction.
The gradient norm is || d metric / d stream[depth, position] ||_2. Its backward pass runs each block again up to the
position that is read, and once backwards for every target.
"""

from collections.abc import AsyncGenerator
from functools import partial

import numpy as np
from torch import Tensor

from ..engine import State
from ..questions.answers import Answer, Floats
from ..questions.prompts import Metric, Target
from ..questions.token_probability import LayerReadings, TokenProbability
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .opening import Clean
from .prediction import numbers


async def parts(
    question: TraceQuestion, method: TokenProbability, session: Session, clean: Clean
) -> AsyncGenerator[Answer, None]:
    """One LayerReadings over all depths for each position, in the order of the request."""
    norms = None
    if method.gradient_norms:
        norms = await _gradient_norms(session, clean.state, clean.position, clean.targets, method.metric)
    for row in method.read_at(question):
        for position in row:
            read = partial(session.engine.lens, clean.state, position, clean.targets, question.top_k)
            yield _readings(position, await session.call(read, positions=session.layers), norms)
            norms = None


def _readings(position: int, lens: tuple[Tensor, ...], norms: Floats | None) -> LayerReadings:
    log_probabilities, logits, ranks, divergences, top_tokens, top_log_probabilities = lens
    return LayerReadings(
        tuple(range(len(logits))),
        numbers(log_probabilities),
        numbers(logits),
        ranks.numpy(),
        numbers(divergences),
        top_tokens.numpy(),
        numbers(top_log_probabilities),
        norms,
        () if norms is None else tuple(range(norms.shape[1])),
        position,
    )


async def _gradient_norms(
    session: Session, state: State, position: int, targets: tuple[Target, ...], metric: Metric
) -> Floats:
    """L2 norm of d metric(target) / d stream, [depths, positions, targets]; 0 after the position that is read."""
    descent = session.descent(state, position + 1)
    passes = (1 + 2 * len(targets)) * (position + 1)
    gradient = (await session.call(lambda: descent.top(targets, metric), positions=session.layers)).below
    norms = np.zeros((session.layers + 1, len(state.tokens), len(targets)), np.float32)
    for depth in range(session.layers, -1, -1):
        norms[depth, : position + 1] = numbers(gradient.float().norm(dim=-1).T.cpu())
        if depth:
            block = partial(descent.block, depth - 1, gradient, frozenset())
            gradient = (await session.call(block, positions=-(-passes // session.layers))).below
    return norms
