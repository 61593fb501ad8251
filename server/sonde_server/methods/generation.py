"""Generation under intervention: every run goes on after the prompt, with its edits in force.

The prompt is read as without generation, its edits made. From then on each step reads one more token a run over the
cached keys and values, so an edit at a position of the prompt acts once, when that position is read, and stays in
what was cached. An edit with `from_position` is made at every later position too. A position is computed once, when
the positions up to it are all there is: a pattern that is set at it covers these keys and no later ones.

All runs draw the same random numbers, so that a token that differs differs by the edits (Chatzi et al. 2024,
arXiv 2409.17027, give the Gumbel-max form of it).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from ..engine import Choice, PlacedEdit, Result, Run, Slot, State
from ..errors import Unsupported
from ..model.anatomy import Decoder
from ..questions.answers import Answer, FinishReason, Generated, Progress
from ..questions.costs import continued_at_once
from ..questions.edits import Edit
from ..questions.generation import Generation
from ..sharing.session import Session
from .overflow import Overflow

Report = Callable[[int, list[Result]], Iterator[Answer]]
# Edits that are made at generated positions too, each with the first position where it is.
Lasting = tuple[tuple[int, PlacedEdit], ...]
CLEAN = -1


@dataclass(frozen=True, slots=True)
class Continued:
    """A run that is to go on: its number, and its edits that do, each with the position from which it does."""

    number: int
    run: Run
    lasting: Lasting = ()

    def edits_at(self, position: int) -> list[PlacedEdit]:
        """What is changed at one generated position."""
        return [replace(edit, positions=(position,)) for first, edit in self.lasting if first <= position]


@dataclass(slots=True)
class _Thread:
    """A run on its way."""

    continued: Continued
    slot: Slot
    token: int


def lasting(edits: Sequence[Edit], placed: Sequence[PlacedEdit]) -> Lasting:
    """The placed edits that go on after the prompt; `receipt` says which of `edits` one comes from."""
    starts = [edit.site.from_position for edit in edits]
    return tuple((start, edit) for edit in placed if (start := starts[edit.receipt]) is not None)


def answer(
    session: Session, clean: State, runs: Iterable[Continued], count: int, generation: Generation, report: Report
) -> Iterator[Answer]:
    """For so many runs at a time as memory allows: what `report` says of their results, then token after token.

    `runs` is the unchanged run and the `count` changed ones, each with a choice at the prompt's last position.
    """
    each = session.engine.memory.cache_bytes(len(clean.tokens) + generation.max_new_tokens)
    size = continued_at_once(count + 1, each, session.decoder.device.type)
    source = iter(runs)
    steps = _Steps(-(-(count + 1) // size) * generation.max_new_tokens)
    while some := list(islice(source, size)):
        yield from _continue(session, clean, some, generation, report, steps)


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


def _continue(
    session: Session,
    clean: State,
    some: list[Continued],
    generation: Generation,
    report: Report,
    steps: _Steps,
) -> Iterator[Answer]:
    engine, tokens = session.engine, len(clean.tokens)
    chooser = Chooser(generation, session.decoder.vocabulary_size)
    choice = chooser.at(tokens - 1)
    rows = [engine.run_row(replace(one.run, choice=choice)) for one in some]
    slots = engine.continued_rows(rows, tokens + generation.max_new_tokens - 1)
    results = session.compute(rows)
    threads = []
    for one, slot, result in zip(some, slots, results, strict=True):
        if one.number != CLEAN:
            yield from report(one.number, [result])
        threads.append(_Thread(one, slot, _chosen(one, result)))
    ends = frozenset[int]() if generation.ignore_end_token else session.decoder.end_tokens
    for offset in range(generation.max_new_tokens):
        if offset:
            choice = chooser.at(tokens + offset - 1)
            stepping = [
                engine.step_row(clean, thread.slot, thread.token, thread.continued.edits_at(choice.position), choice)
                for thread in threads
            ]
            for thread, result in zip(threads, session.compute(stepping), strict=True):
                thread.token = _chosen(thread.continued, result)
        generated = _step(offset, threads, ends, generation)
        yield generated
        threads = [thread for thread, reason in zip(threads, generated.reasons, strict=True) if reason is None]
        session.finish(len(generated.runs) - len(threads))
        if not threads:
            break
        yield steps.at(offset + 1)
    steps.done += generation.max_new_tokens
    yield steps.at(0)


def _chosen(continued: Continued, result: Result) -> int:
    if result.token is None:
        raise Overflow(continued.number, "the next token's distribution")
    return result.token


def _step(offset: int, threads: list[_Thread], ends: frozenset[int], generation: Generation) -> Generated:
    tokens = tuple(one.token for one in threads)
    last = FinishReason.LENGTH if offset == generation.max_new_tokens - 1 else None
    reasons = tuple(FinishReason.END_TOKEN if token in ends else last for token in tokens)
    return Generated(offset, tuple(one.continued.number for one in threads), tokens, reasons)


class Chooser:
    """The choices of a generation, step by step.

    Above temperature 0 step k adds to logits / temperature the noise -log(-log(u)), u the row k of
    numpy.random.RandomState(seed).random_sample([steps, V]), and takes the largest (Gumbel-max).
    """

    def __init__(self, generation: Generation, vocabulary: int) -> None:
        self._temperature = generation.temperature
        self._vocabulary = vocabulary
        self._draws = np.random.RandomState(generation.seed)

    def at(self, position: int) -> Choice:
        """The next step's choice, after `position`."""
        if not self._temperature:
            return Choice(position)
        uniform = self._draws.random_sample(self._vocabulary)
        with np.errstate(divide="ignore"):  # A draw of 0, in truth possible, is never the largest.
            noise = -np.log(-np.log(uniform))
        return Choice(position, self._temperature, torch.from_numpy(noise))
