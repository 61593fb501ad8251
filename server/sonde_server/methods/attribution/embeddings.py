"""Runs of a prompt with its token embeddings on the way to those of another."""

import torch

from ...engine import Base, Change, PlacedEdit
from ...engine.gradients import Descent
from ...questions.places import Component
from ...questions.prompts import differing
from ...sharing.session import Session


def between(session: Session, base: Descent, source: Descent, share: float) -> Descent:
    """The run `base` with its token embeddings moved to those of `source` by `share` of the way, in a line."""
    start, end = base.state, source.state
    places = differing(start, end)
    if not places:
        return base
    picked = list(places)
    embedding = torch.lerp(start.embedding[picked].float(), end.embedding[picked].float(), share)
    edit = PlacedEdit(Component.TOKEN_EMBEDDING, 0, places, None, Change("set", embedding))
    row = session.engine.base_row(Base(start.tokens, edit, image=start.image), start)
    session.engine.execute([row])
    assert row.state is not None
    return session.descent(row.state, base.length)
