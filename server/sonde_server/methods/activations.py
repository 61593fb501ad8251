"""The values at chosen sites of the unchanged run."""

from collections.abc import AsyncGenerator
from itertools import groupby

from ..engine import Capture
from ..questions.activations import Activation, Activations, Pooling
from ..questions.answers import Answer
from ..questions.places import Site
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .opening import Clean
from .prediction import numbers


def captures_of(sites: tuple[Site, ...], tokens: int, pooling: Pooling) -> list[tuple[int, Capture]]:
    """What has to be copied for these sites, each with the index of its site."""
    return [
        (number, Capture(place.component, place.layer, place.positions, site.units, pooling, rows))
        for number, site in enumerate(sites)
        for rows in [() if pooling is Pooling.NONE else site.row_sizes(tokens)]
        for place in site.places(tokens)
    ]


async def parts(
    question: TraceQuestion, method: Activations, session: Session, clean: Clean
) -> AsyncGenerator[Answer, None]:
    """Every site's values, one layer at a time, so that a large answer leaves as it is read."""
    wanted = sorted(captures_of(method.sites, question.tokens, method.pooling), key=lambda one: one[1].layer)
    for _, layer in groupby(wanted, key=lambda one: one[1].layer):
        group = list(layer)
        found = await session.values(clean.state, [capture for _, capture in group])
        for (number, capture), values in zip(group, found, strict=True):
            yield Activation(-1, number, capture.layer, numbers(values), method.encoding)
