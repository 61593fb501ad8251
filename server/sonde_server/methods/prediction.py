"""The prediction of a run, as it is answered."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..engine import Reading, Result, State
from ..questions.answers import Floats, Prediction
from ..questions.prompts import Target
from ..sharing.session import Session


def numbers(tensor: Tensor | None) -> Floats:
    """A CPU tensor as float32 numpy."""
    assert tensor is not None
    values: Floats = tensor.float().numpy().astype(np.float32, copy=False)
    return values


async def predict(
    session: Session, state: State, targets: Sequence[Target], position: int, top_k: int
) -> tuple[tuple[Target, ...], Prediction]:
    """What the unchanged run predicts, and the targets; where none is given, its own top prediction is the one."""
    (result,) = await session.read([state], Reading(position, tuple(targets), max(top_k, 1), clean=state))
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
