"""The published methods, one file each, over the engine.

A method's file has `parts`: what the method finds once the unchanged run is known. How an answer opens is the same for
all of them.
"""

from collections.abc import Generator, Iterator
from typing import assert_never

from ..questions.activations import Activations
from ..questions.answers import Answer
from ..questions.attribution_patching import AttributionPatching
from ..questions.causal_tracing import CausalTracing
from ..questions.interventions import InterveneQuestion
from ..questions.prediction import Prediction
from ..questions.token_probability import TokenProbability
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from . import activations, attribution_patching, causal_tracing, interventions, token_probability
from .opening import Clean, opening
from .overflow import finite

__all__ = ["intervene", "trace"]


def trace(question: TraceQuestion, session: Session) -> Iterator[Answer]:
    """What made this prediction. Yields the context first, then what the method finds."""
    return finite(_trace(question, session), question, session)


def _trace(question: TraceQuestion, session: Session) -> Generator[Answer, None, None]:
    clean = yield from opening(question, session)
    if clean is not None:
        yield from _parts(question, session, clean)


def _parts(question: TraceQuestion, session: Session, clean: Clean) -> Iterator[Answer]:
    match question.method:
        case Prediction():
            pass
        case TokenProbability() as method:
            yield from token_probability.parts(question, method, session, clean)
        case CausalTracing() as method:
            yield from causal_tracing.parts(question, method, session, clean)
        case AttributionPatching() as method:
            yield from attribution_patching.parts(question, method, session, clean)
        case Activations() as method:
            yield from activations.parts(question, method, session, clean)
        case _ as unknown:
            assert_never(unknown)


def intervene(question: InterveneQuestion, session: Session) -> Iterator[Answer]:
    """What happens to the prediction when parts are changed."""
    return finite(interventions.answer(question, session), question, session)
