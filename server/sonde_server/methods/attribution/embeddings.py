"""Runs of a prompt with its token embeddings on the way to those of another."""

import torch

from ...engine import Base, Change, PlacedEdit
from ...engine.gradients import Descent
from ...questions.places import Component
from ...sharing.session import Session


def between(session: Session, base: Descent, source: Descent, share: float) -> Descent:
    """The run `base` with its token embeddings moved to those of `source` by `share` of the way, in a line."""
    start, end = base.state, source.state
    pairs = enumerate(zip(start.tokens, end.tokens, strict=True))
    differing = tuple(number for number, (one, other) in pairs if one != other)
    if not differing:
        return base
    picked = list(differing)
    embedding = torch.lerp(start.embedding[picked].float(), end.embedding[picked].float(), share)
    edit = PlacedEdit(Component.TOKEN_EMBEDDING, 0, differing, None, Change("set", embedding))
    row = session.engine.base_row(Base(start.tokens, edit), start)
    session.engine.execute([row])
    assert row.state is not None
    return session.descent(row.state, base.length)
