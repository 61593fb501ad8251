"""The published methods, one file each, over the engine."""

from collections.abc import Generator, Iterator

from ..questions.answers import Answer
from ..questions.attribution_patching import AttributionPatching
from ..questions.causal_tracing import CausalTracing
from ..questions.interventions import InterveneQuestion
from ..questions.token_probability import TokenProbability
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from . import activations, attribution_patching, causal_tracing, interventions, prediction, token_probability
from .overflow import finite

__all__ = ["intervene", "trace"]


def trace(question: TraceQuestion, session: Session) -> Iterator[Answer]:
    """What made this prediction. Yields the context first, then what the method finds."""
    return finite(_trace(question, session), question, session)


def _trace(question: TraceQuestion, session: Session) -> Generator[Answer, None, None]:
    match question.method:
        case None:
            yield from prediction.answer(question, session)
        case TokenProbability() as method:
            yield from token_probability.answer(question, method, session)
        case CausalTracing() as method:
            yield from causal_tracing.answer(question, method, session)
        case AttributionPatching() as method:
            yield from attribution_patching.answer(question, method, session)
        case _ as method:
            yield from activations.answer(question, method, session)


def intervene(question: InterveneQuestion, session: Session) -> Iterator[Answer]:
    """What happens to the prediction when parts are changed."""
    return finite(interventions.answer(question, session), question, session)
