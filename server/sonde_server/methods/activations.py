"""The values at chosen sites of the unchanged run."""

from collections.abc import Iterator
from itertools import groupby
from math import prod

from ..engine import Base, Capture
from ..questions.activations import Activations
from ..questions.answers import Activation, Answer, Context, Cost
from ..questions.extents import rereading
from ..questions.kernels import attention_of
from ..questions.places import PAIRWISE, Site
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .prediction import numbers, predict


def captures_of(sites: tuple[Site, ...], tokens: int) -> list[tuple[int, Capture]]:
    """What has to be copied for these sites, each with the index of its site."""
    return [
        (number, Capture(site.component, layer, site.positions_within(tokens), site.units))
        for number, site in enumerate(sites)
        for layer in site.layers
    ]


def size_of(session: Session, sites: tuple[Site, ...], tokens: int) -> int:
    """Bytes of the values at these sites, as float32."""
    decoder = session.engine.decoder
    total = 0
    for _, capture in captures_of(sites, tokens):
        total += 4 * prod(decoder.selected_shape(capture.component, capture.units, len(capture.positions), tokens))
    return total


def answer(question: TraceQuestion, method: Activations, session: Session) -> Iterator[Answer]:
    """Context, then every site's values, layer by layer."""
    tokens, position = question.prompt.tokens, question.position
    layers = session.engine.layers
    # One layer at a time, so that a large answer leaves as it is read.
    wanted = sorted(captures_of(method.sites, len(tokens)), key=lambda one: one[1].layer)
    groups = [list(layer) for _, layer in groupby(wanted, key=lambda one: one[1].layer)]
    reads = [rereading([capture for _, capture in group], len(tokens), layers) for group in groups]
    work = len(tokens) * layers
    again = sum(run.token_layers for run in reads)
    cost = Cost(1, work + again, work * (1 + len(groups)), size_of(session, method.sites, len(tokens)))
    pairs = any(site.component in PAIRWISE for site in method.sites)
    attention = attention_of(session.engine.decoder.attention, reads, pairs=pairs)
    if question.dry_run:
        yield Context(tokens, question.targets, position, None, cost, attention)
        return
    state = session.states([Base(tokens)], read=position)[0]
    targets, clean = predict(session, state, question.targets, position, question.top_k)
    yield Context(tokens, targets, position, clean, cost, attention)
    for group in groups:
        found = session.values(state, [capture for _, capture in group])
        for (number, capture), values in zip(group, found, strict=True):
            yield Activation(-1, number, capture.layer, numbers(values))
