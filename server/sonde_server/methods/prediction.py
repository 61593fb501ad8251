"""The prediction of the unchanged run; what every other answer starts with."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ..engine import Base, Reading, Result, State
from ..questions.answers import Answer, Context, Cost, Floats, Prediction
from ..questions.kernels import attention_of
from ..questions.prompts import Target
from ..questions.traces import TraceQuestion
from ..sharing.session import Session


def numbers(tensor: Tensor | None) -> Floats:
    """A CPU tensor as float32 numpy."""
    assert tensor is not None
    values: Floats = tensor.float().numpy().astype(np.float32, copy=False)
    return values


def predict(
    session: Session, state: State, targets: Sequence[Target], position: int, top_k: int
) -> tuple[tuple[Target, ...], Prediction]:
    """What the unchanged run predicts; without targets, its own top prediction becomes the one."""
    result = session.read([state], Reading(position, tuple(targets), max(top_k, 1), clean=state))[0]
    if not targets:
        assert result.top_tokens is not None
        targets = (Target(int(result.top_tokens[0])),)
    return tuple(targets), as_prediction(result, top_k)


def as_prediction(result: Result, top_k: int) -> Prediction:
    """A run's result as it is answered."""
    assert result.top_tokens is not None
    return Prediction(
        numbers(result.log_probabilities),
        numbers(result.logits),
        result.top_tokens[:top_k].numpy(),
        numbers(result.top_log_probabilities)[:top_k],
    )


def answer(question: TraceQuestion, session: Session) -> Iterator[Answer]:
    """The prediction alone."""
    tokens = question.prompt.tokens
    work = len(tokens) * session.engine.layers
    cost = Cost(1, work, work, 8 * (len(question.targets) + question.top_k))
    attention = attention_of(session.engine.decoder.attention)
    if question.dry_run:
        yield Context(tokens, question.targets, question.position, None, cost, attention)
        return
    state = session.states([Base(tokens)], read=question.position)[0]
    targets, clean = predict(session, state, question.targets, question.position, question.top_k)
    yield Context(tokens, targets, question.position, clean, cost, attention)
