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

from ..engine import Choice, Engine, PlacedEdit, Result, Run, Slot, State
from ..errors import Unsupported
from ..questions.answers import Answer, FinishReason, Generated, Progress
from ..questions.costs import together
from ..questions.edits import Edit
from ..questions.interventions import Generation
from ..sharing.session import Session
from .overflow import Overflow

Report = Callable[[int, list[Result]], Iterator[Answer]]
CLEAN = -1


@dataclass(frozen=True, slots=True)
class Continued:
    """A run that is to go on: its number, and its edits that do, each with the position from which it does."""

    number: int
    run: Run
    lasting: tuple[tuple[int, PlacedEdit], ...] = ()

    def edits_at(self, position: int) -> list[PlacedEdit]:
        """What is changed at one generated position."""
        return [replace(edit, positions=(position,)) for first, edit in self.lasting if first <= position]


@dataclass(slots=True)
class _Thread:
    """A run on its way."""

    continued: Continued
    slot: Slot
    token: int


def token_layers(runs: int, tokens: int, layers: int, generation: Generation) -> tuple[int, int]:
    """Positions x blocks for the tokens after the first, of so many runs: with the cache, and recomputed in full.

    No run takes more; one that meets an end token takes less.
    """
    steps = generation.max_new_tokens - 1
    return runs * steps * layers, runs * layers * sum(tokens + step for step in range(1, steps + 1))


def lasting(edits: Sequence[Edit], placed: Sequence[PlacedEdit]) -> tuple[tuple[int, PlacedEdit], ...]:
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
    size = together(count + 1, each, session.engine.decoder.device.type)
    source = iter(runs)
    steps = _Steps(-(-(count + 1) // size) * generation.max_new_tokens)
    while window := list(islice(source, size)):
        yield from _window(session, clean, window, generation, report, steps)


def check(engine: Engine, tokens: int, generation: Generation) -> None:
    """Raises Unsupported where a text would grow past the length at which what is cached was turned otherwise."""
    longest = engine.decoder.longest_alike
    if longest is not None and tokens <= longest < tokens + generation.max_new_tokens - 1:
        raise Unsupported(
            "readout.generation.max_new_tokens",
            f"this model turns keys otherwise in texts of more than {longest} tokens; "
            f"give at most {longest - tokens + 1} for a prompt of {tokens}, or a longer prompt",
        )


@dataclass(slots=True)
class _Steps:
    """Counts the steps of all windows; what an early end saves counts as done."""

    total: int
    done: int = 0

    def at(self, done: int) -> Progress:
        return Progress(self.done + done, self.total)


def _window(
    session: Session,
    clean: State,
    window: list[Continued],
    generation: Generation,
    report: Report,
    steps: _Steps,
) -> Iterator[Answer]:
    engine, tokens = session.engine, len(clean.tokens)
    chooser = Chooser(generation, engine.decoder.vocabulary_size)
    choice = chooser.at(tokens - 1)
    rows = [engine.run_row(replace(one.run, choice=choice)) for one in window]
    slots = engine.continued_rows(rows, tokens + generation.max_new_tokens - 1)
    results = session.compute(rows)
    threads = []
    for one, slot, result in zip(window, slots, results, strict=True):
        if one.number != CLEAN:
            yield from report(one.number, [result])
        threads.append(_Thread(one, slot, _chosen(one, result)))
    ends = frozenset[int]() if generation.ignore_end_token else engine.decoder.end_tokens
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
