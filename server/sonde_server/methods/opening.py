"""How every answer opens: the cost, and the prediction of the unchanged run that all else is compared with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from ..engine import Base, State
from ..questions.answers import Context
from ..questions.cases import Cases
from ..questions.interventions import InterveneQuestion
from ..questions.kernels import attention_of
from ..questions.prompts import Target
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .prediction import predict

Question = TraceQuestion | InterveneQuestion


@dataclass(frozen=True, slots=True)
class Clean:
    """The unchanged run: its state, the position that is read, and the targets, of which there is at least one."""

    state: State
    position: int
    targets: tuple[Target, ...]


async def nothing(_: State) -> None:
    """Hands no runs in beside the unchanged one."""


async def opening(
    question: Question, session: Session, *, beside: Callable[[State], Awaitable[None]] = nothing
) -> tuple[Context, Clean | None]:
    """The context, and the unchanged run, or None in a dry run, whose answer ends with the context.

    `beside` is called with the state of the unchanged run before it is waited for, and may hand in runs over it.
    """
    asked, tokens, position = question.asked, question.prompt.tokens, question.asked.position
    restarts = question.restarts(session.decoder)
    cost = question.cost(session.decoder, restarts)
    attention = attention_of(session.decoder.attention, restarts, pairs=question.pairs)
    prompt = asked.prompt
    opened = Context(tokens, asked.targets, position, None, cost, attention, question.axes, prompt.spans, prompt.image)
    if question.dry_run:
        return opened, None
    state = await session.start(Base.of(prompt), read=position)
    await beside(state)
    await session.ready([state])
    targets, prediction = await predict(session, state, asked.targets, position, asked.top_k)
    return replace(opened, targets=targets, clean=prediction), Clean(state, position, targets)


def announced(cases: Cases[TraceQuestion] | Cases[InterveneQuestion], session: Session) -> Context:
    """What a dry run of many cases says: what all of them cost, and the targets and axes of the first."""
    first, sizes = cases.questions[0], session.decoder
    attention = attention_of(sizes.attention, first.restarts(sizes), pairs=first.pairs)
    return Context((), first.asked.targets, 0, None, cases.cost(sizes), attention, first.axes)
