"""Generation under intervention: every run is continued after the prompt, with its edits in force.

The prompt is computed as without generation, with the edits made. From then on each step computes one more token for
every run, over the cached keys and values. So an edit at a position of the prompt acts once, when that position is
computed, and its effect stays in the cache. An edit with `from_position` is made at every later position too. A
position is computed once, and attends to the positions before it: a pattern that is set there covers these keys alone.

All runs draw the same random numbers, so tokens differ only because of the edits (Chatzi et al. 2024, arXiv
2409.17027, give the Gumbel-max form of it).
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from ..engine import Choice, PlacedEdit, Result, Run, Slot, State
from ..errors import Unsupported
from ..model.anatomy import Decoder
from ..questions.answers import Answer, Progress
from ..questions.costs import continued_at_once
from ..questions.edits import Edit
from ..questions.generation import FinishReason, Generated, Generation
from ..sharing.session import Session
from .overflow import Overflow

Report = Callable[[int, list[Result]], Iterator[Answer]]
# Edits that are made at generated positions too, each with the first position where it is.
Lasting = tuple[tuple[int, PlacedEdit], ...]
CLEAN = -1


@dataclass(frozen=True, slots=True)
class Continued:
    """A run that is to be continued: its number, and those of its edits that last."""

    number: int
    run: Run
    lasting: Lasting = ()

    def edits_at(self, position: int) -> list[PlacedEdit]:
        """The edits at one generated position."""
        return [replace(edit, positions=(position,)) for first, edit in self.lasting if first <= position]


@dataclass(slots=True)
class _Growing:
    """A run that is being continued: its place in the cache, and its last token."""

    continued: Continued
    slot: Slot
    token: int


def lasting(edits: Sequence[Edit], placed: Sequence[PlacedEdit]) -> Lasting:
    """The placed edits that last after the prompt; `receipt` says which of `edits` each comes from."""
    starts = [edit.site.from_position for edit in edits]
    return tuple((start, edit) for edit in placed if (start := starts[edit.receipt]) is not None)


async def answer(
    session: Session, clean: State, runs: Iterable[Continued], count: int, generation: Generation, report: Report
) -> AsyncGenerator[Answer, None]:
    """What `report` yields for each result, then the tokens, step by step, for as many runs at a time as fit in memory.

    `runs` is the unchanged run and the `count` changed ones.
    """
    each = session.engine.memory.cache_bytes(len(clean.tokens) + generation.max_new_tokens)
    size = continued_at_once(count + 1, each, session.decoder.device.type)
    source = iter(runs)
    steps = _Steps(-(-(count + 1) // size) * generation.max_new_tokens)
    while some := list(islice(source, size)):
        async for part in _continue(session, clean, some, generation, report, steps):
            yield part


def check(decoder: Decoder, tokens: int, generation: Generation) -> None:
    """Raises Unsupported where a text would outgrow the length up to which its cached keys are rotated alike."""
    longest = decoder.longest_alike
    if longest is not None and tokens <= longest < tokens + generation.max_new_tokens - 1:
        raise Unsupported(
            "readout.generation.max_new_tokens",
            f"expected at most {longest - tokens + 1} new tokens for a prompt of {tokens}, or a longer prompt, got "
            f"{generation.max_new_tokens}: this model uses different rotary embeddings beyond {longest} tokens, so a "
            "cached prompt cannot be extended past that",
        )


@dataclass(slots=True)
class _Steps:
    """Counts the steps of all runs; steps that an early end saves count as done."""

    total: int
    done: int = 0

    def at(self, done: int) -> Progress:
        return Progress(self.done + done, self.total)


async def _continue(
    session: Session,
    clean: State,
    some: list[Continued],
    generation: Generation,
    report: Report,
    steps: _Steps,
) -> AsyncGenerator[Answer, None]:
    engine, tokens = session.engine, len(clean.tokens)
    chooser = Chooser(generation, session.decoder.vocabulary_size)
    choice = chooser.at(tokens - 1)
    rows = [engine.run_row(replace(one.run, choice=choice)) for one in some]
    slots = engine.continued_rows(rows, tokens + generation.max_new_tokens - 1)
    results = session.compute(rows)
    growing = []
    for one, slot in zip(some, slots, strict=True):
        (result,) = await results.take(1)
        if one.number != CLEAN:
            for part in report(one.number, [result]):
                yield part
        growing.append(_Growing(one, slot, _chosen(one, result)))
    ends = frozenset[int]() if generation.ignore_end_token else session.decoder.end_tokens
    for offset in range(generation.max_new_tokens):
        if offset:
            choice = chooser.at(tokens + offset - 1)
            stepping = [
                engine.step_row(clean, run.slot, run.token, run.continued.edits_at(choice.position), choice)
                for run in growing
            ]
            chosen = await session.compute(stepping).take(len(stepping))
            for run, result in zip(growing, chosen, strict=True):
                run.token = _chosen(run.continued, result)
        generated = _step(offset, growing, ends, generation)
        yield generated
        growing = [run for run, reason in zip(growing, generated.reasons, strict=True) if reason is None]
        session.finish(len(generated.runs) - len(growing))
        if not growing:
            break
        yield steps.at(offset + 1)
    steps.done += generation.max_new_tokens
    yield steps.at(0)


def _chosen(continued: Continued, result: Result) -> int:
    if result.token is None:
        raise Overflow(continued.number, "the next token's distribution")
    return result.token


def _step(offset: int, growing: list[_Growing], ends: frozenset[int], generation: Generation) -> Generated:
    tokens = tuple(one.token for one in growing)
    last = FinishReason.LENGTH if offset == generation.max_new_tokens - 1 else None
    reasons = tuple(FinishReason.END_TOKEN if token in ends else last for token in tokens)
    return Generated(offset, tuple(one.continued.number for one in growing), tokens, reasons)


class Chooser:
    """The choices of a generation, step by step.

    At temperature 0 the largest logit is chosen. Above, step k adds the noise -log(-log(u)) to logits / temperature and
    chooses the largest (Gumbel-max), where u is row k of numpy.random.RandomState(seed).random_sample([steps, V]).
    """

    def __init__(self, generation: Generation, vocabulary: int) -> None:
        self._temperature = generation.temperature
        self._vocabulary = vocabulary
        self._draws = np.random.RandomState(generation.seed)

    def at(self, position: int) -> Choice:
        """The choice of the token after `position`."""
        if not self._temperature:
            return Choice(position)
        uniform = self._draws.random_sample(self._vocabulary)
        with np.errstate(divide="ignore"):  # A draw of 0, which is possible, is never the largest.
            noise = -np.log(-np.log(uniform))
        return Choice(position, self._temperature, torch.from_numpy(noise))
