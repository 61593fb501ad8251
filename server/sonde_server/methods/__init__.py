"""The published methods, one file each, over the engine.

A method's file has `parts`: what the method finds once the unchanged run is known. How an answer opens is the same for
all of them.
"""

from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import assert_never

from ..questions.activations import Activations
from ..questions.answers import Answer
from ..questions.attribution_patching import AttributionPatching
from ..questions.cases import Cases, Question
from ..questions.causal_scrubbing import CausalScrubbing
from ..questions.causal_tracing import CausalTracing
from ..questions.circuit_discovery import CircuitDiscovery
from ..questions.interventions import InterveneQuestion
from ..questions.prediction import Prediction
from ..questions.reductions import reducible
from ..questions.token_probability import TokenProbability
from ..questions.traces import TraceQuestion
from ..sharing.cases import Answering, advance
from ..sharing.driving import drive
from ..sharing.session import Session
from . import (
    activations,
    attribution_patching,
    causal_scrubbing,
    causal_tracing,
    circuit_discovery,
    interventions,
    token_probability,
)
from .opening import Clean, announced, opening
from .overflow import finite
from .reductions import reduced

__all__ = ["intervene", "trace"]


def trace(question: TraceQuestion | Cases[TraceQuestion], session: Session) -> Iterator[Answer]:
    """What made this prediction. Yields the context first, then what the method finds; of cases as `_cases` says."""
    if isinstance(question, Cases):
        return _cases(question, _traced, session)
    return drive(_traced(question, session), session)


def intervene(
    question: InterveneQuestion | Cases[InterveneQuestion] | CausalScrubbing, session: Session
) -> Iterator[Answer]:
    """What happens to the prediction when parts are changed; of cases as `_cases` says."""
    if isinstance(question, CausalScrubbing):
        return drive(causal_scrubbing.answer(question, session), session)
    if isinstance(question, Cases):
        return _cases(question, _intervened, session)
    return drive(_intervened(question, session), session)


def _cases(cases: Cases[Question], answering: Answering[Question], session: Session) -> Iterator[Answer]:
    """The answer to one case after another, part by part, or statistics over them in their place; and the progress.

    A dry run has one context, with what all of them cost.
    """
    if cases.dry_run:
        return iter([announced(cases, session)])
    if cases.reduction is None:
        return advance(cases, answering, session)
    if cases.together:
        return drive(circuit_discovery.jointly(cases, session), session)
    asked = replace(cases, questions=tuple(reducible(question) for question in cases.questions))
    return reduced(advance(asked, answering, session), cases)


def _traced(question: TraceQuestion, session: Session) -> AsyncGenerator[Answer, None]:
    return finite(_trace(question, session), question, session)


def _intervened(question: InterveneQuestion, session: Session) -> AsyncGenerator[Answer, None]:
    return finite(interventions.answer(question, session), question, session)


async def _trace(question: TraceQuestion, session: Session) -> AsyncGenerator[Answer, None]:
    context, clean = await opening(question, session)
    yield context
    if clean is not None:
        parts = _parts(question, session, clean)
        if parts is not None:
            async for part in parts:
                yield part
    elif isinstance(question.method, CausalTracing):
        yield causal_tracing.announced(question.method)


def _parts(question: TraceQuestion, session: Session, clean: Clean) -> AsyncGenerator[Answer, None] | None:
    """What the method finds; None: nothing beside the context."""
    match question.method:
        case Prediction():
            return None
        case TokenProbability() as method:
            return token_probability.parts(question, method, session, clean)
        case CausalTracing() as method:
            return causal_tracing.parts(question, method, session, clean)
        case AttributionPatching() as method:
            return attribution_patching.parts(question, method, session, clean)
        case CircuitDiscovery() as method:
            return circuit_discovery.parts(question, method, session, clean)
        case Activations() as method:
            return activations.parts(question, method, session, clean)
        case _ as unknown:
            assert_never(unknown)
