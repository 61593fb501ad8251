"""How every answer opens: the cost, then the prediction of the unchanged run, which all else is compared with."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from ..engine import Base, State
from ..questions.answers import Answer, Context
from ..questions.costs import Cost
from ..questions.places import PAIRWISE, Component
from ..questions.plans import SweepAxes
from ..questions.prompts import Asked, Target
from ..sharing.session import Session
from .prediction import predict


@dataclass(frozen=True, slots=True)
class Clean:
    """The unchanged run: its state, the position that is read, and the targets, never none."""

    state: State
    position: int
    targets: tuple[Target, ...]


def attention_for(components: Iterable[Component]) -> str:
    """Which attention computes these: scores and patterns exist only in the explicit one."""
    return "sdpa" if PAIRWISE.isdisjoint(components) else "eager"


def no_more(_: State) -> None:
    """Hands nothing in beside the unchanged run."""


def opening(
    asked: Asked,
    cost: Cost,
    components: Iterable[Component],
    session: Session,
    *,
    dry_run: bool,
    axes: SweepAxes | None = None,
    beside: Callable[[State], None] = no_more,
) -> Generator[Answer, None, Clean | None]:
    """Yields the context. Returns the unchanged run, or None in a dry run, whose answer ends there.

    `beside` is called with the state of the unchanged run before it is waited for, and may hand in runs over it.
    """
    tokens, attention = asked.prompt.tokens, attention_for(components)
    if dry_run:
        yield Context(tokens, asked.targets, asked.position, None, cost, attention, axes)
        return None
    state = session.start(Base(tokens), read=asked.position)
    beside(state)
    session.ready([state])
    targets, prediction = predict(session, state, asked.targets, asked.position, asked.top_k)
    yield Context(tokens, targets, asked.position, prediction, cost, attention, axes)
    return Clean(state, asked.position, targets)
