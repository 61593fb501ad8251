"""Generation under intervention: every run is continued after the prompt, with its edits in force.

The prompt is computed as without generation, with the edits made. From then on each step computes one more token for
every continuation, over the cached keys and values. So an edit at a position of the prompt acts once, when that
position is computed, and its effect stays in the cache. An edit with `from_position` is made at every later position
too. A position is computed once, and attends to the positions before it: a pattern that is set there covers these keys
alone.

All runs draw the same random numbers, so tokens differ only because of the edits (Chatzi et al. 2024, arXiv
2409.17027, give the Gumbel-max form of it). A run with several continuations computes its prompt once: they share its
keys and values, and each draws from a seed of its own.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from ..engine import Capture, Choice, PlacedEdit, Result, Run, Slot, State, Taken
from ..errors import Unsupported
from ..model.anatomy import Decoder
from ..questions.activations import Encoding
from ..questions.answers import Answer, Floats, Progress
from ..questions.edits import Edit
from ..questions.generation import FinishReason, Generated, Generation
from ..questions.texts import Stops
from ..sharing.session import Session
from .overflow import Overflow
from .prediction import numbers

Report = Callable[[int, list[Result]], Iterator[Answer]]
# Edits that are made at generated positions too, each with the first position where it is.
Lasting = tuple[tuple[int, PlacedEdit], ...]
CLEAN = -1
SEEDS = 2**32


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
class _Prompt:
    """A run whose prompt has been computed: what its continuations attend to, and their first tokens, by sample.

    `slot`: where the rest of the prompt is, if there is one continuation, which goes on there. `left`: how many of its
    continuations have not ended.
    """

    continued: Continued
    base: State
    slot: Slot | None
    taken: list[Taken]
    left: int


@dataclass(slots=True)
class _Growing:
    """A continuation that grows: of which run and sample, where its keys and values are, and its last token."""

    prompt: _Prompt
    sample: int
    slot: Slot
    taken: Taken
    stops: Stops | None
    reason: FinishReason | None = None


def lasting(edits: Sequence[Edit], placed: Sequence[PlacedEdit]) -> Lasting:
    """The placed edits that last after the prompt; `receipt` says which of `edits` each comes from."""
    starts = [edit.site.from_position for edit in edits]
    return tuple((start, edit) for edit in placed if (start := starts[edit.receipt]) is not None)


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


class Continuing:
    """Continues the runs of a question: the unchanged one, if it is wanted, and the `count` changed ones.

    `report` yields what is read of a changed run, before its tokens.
    """

    def __init__(
        self, session: Session, clean: State, count: int, generation: Generation, encoding: Encoding, report: Report
    ) -> None:
        self.session = session
        self.clean = clean
        self.generation = generation
        self.encoding = encoding
        self.report = report
        memory, tokens = session.engine.memory, len(clean.tokens)
        prompt, new = memory.cache_bytes(tokens), memory.cache_bytes(generation.max_new_tokens)
        self.at_once = generation.at_once(generation.continued(count), prompt, new, session.decoder.device.type)
        portions = -(-generation.continued(count) // self.at_once.runs) * -(-generation.samples // self.at_once.samples)
        self.steps = _Steps(portions * generation.max_new_tokens)
        self.ends = frozenset[int]() if generation.ignore_end_token else session.decoder.end_tokens

    async def answer(self, runs: Iterable[Continued]) -> AsyncGenerator[Answer, None]:
        """What is read of each run, then the tokens, step by step, for as many at a time as fit in memory."""
        source, samples = iter(runs), self.generation.samples
        while some := list(islice(source, self.at_once.runs)):
            choosers = [Chooser(self.generation, self.session.decoder.vocabulary_size, i) for i in range(samples)]
            prompts: list[_Prompt] = []
            async for part in self._prompts(some, choosers, prompts):
                yield part
            for first in range(0, samples, self.at_once.samples):
                portion = range(first, min(first + self.at_once.samples, samples))
                async for part in self._grow(self._begun(prompts, portion), choosers):
                    yield part

    async def _prompts(
        self, some: list[Continued], choosers: list["Chooser"], prompts: list[_Prompt]
    ) -> AsyncGenerator[Answer, None]:
        """Computes the prompts of some runs, yields what is read of them, and adds them to `prompts`."""
        session, engine, alone = self.session, self.session.engine, len(choosers) == 1
        tokens = len(self.clean.tokens)
        choices = tuple(chooser.at(tokens - 1) for chooser in choosers)
        rows = [engine.run_row(replace(one.run, choices=choices)) for one in some]
        slots = engine.continued_rows(rows, self._limit if alone else tokens)
        results = session.compute(rows)
        for one, slot in zip(some, slots, strict=True):
            (result,) = await results.take(1)
            if one.number != CLEAN:
                for part in self.report(one.number, [result]):
                    yield part
            prompts.append(_Prompt(one, self.clean, slot, _taken(one, result), len(choosers)))
        if not alone:
            branch = partial(engine.branched, self.clean)
            # It copies the keys and values of one prompt after another.
            bases = await session.call(lambda: [branch(slot) for slot in slots], positions=len(slots))
            for prompt, base in zip(prompts, bases, strict=True):
                prompt.base, prompt.slot = base, None

    @property
    def _limit(self) -> int:
        """How many positions a run has with all tokens but the last, which is not read."""
        return len(self.clean.tokens) + self.generation.max_new_tokens - 1

    def _begun(self, prompts: list[_Prompt], samples: range) -> list[_Growing]:
        """The continuations of these samples, each with its first token."""
        slots = [prompt.slot for prompt in prompts if prompt.slot is not None]
        if not slots:
            slots = self.session.engine.branches(self.clean, len(prompts) * len(samples), self._limit)
        pairs = [(prompt, sample) for prompt in prompts for sample in samples]
        return [
            _Growing(prompt, sample, slot, prompt.taken[sample], self._stops())
            for (prompt, sample), slot in zip(pairs, slots, strict=True)
        ]

    def _stops(self) -> Stops | None:
        asked = self.generation
        if not asked.stop or asked.decode is None:
            return None
        return Stops(asked.stop, asked.decode, self.clean.tokens)

    async def _grow(self, growing: list[_Growing], choosers: list["Chooser"]) -> AsyncGenerator[Answer, None]:
        """Continues until all have ended. A token is yielded when it is chosen, or once its activations are read."""
        reads = bool(self.generation.activations)
        for offset in range(self.generation.max_new_tokens):
            if offset:
                results = await self._fed(growing, offset - 1, choosers)
                if reads:
                    yield self._part(offset - 1, growing, results)
                for one, result in zip(growing, results, strict=True):
                    (one.taken,) = _taken(one.prompt.continued, result)
            for one in growing:
                one.reason = self._reason(one, offset)
            ended = [one for one in growing if one.reason is not None]
            # A token that goes on is read first.
            if now := ended if reads else growing:
                yield self._part(offset, now)
            self._finish(ended)
            growing = [one for one in growing if one.reason is None]
            if not growing:
                break
            yield self.steps.at(offset + 1)
        self.steps.done += self.generation.max_new_tokens
        yield self.steps.at(0)

    async def _fed(self, growing: list[_Growing], offset: int, choosers: list["Chooser"]) -> list[Result]:
        """Reads the token of each at this offset, and chooses the next one."""
        position = len(self.clean.tokens) + offset
        # Every continuation of a sample draws the same.
        choices = {sample: choosers[sample].at(position) for sample in dict.fromkeys(one.sample for one in growing)}
        captures = tuple(
            Capture(site.component, layer, (position,), site.units)
            for site in self.generation.activations
            for layer in site.layers
        )
        rows = [
            self.session.engine.step_row(
                one.prompt.base,
                one.slot,
                one.taken.token,
                one.prompt.continued.edits_at(position),
                choices[one.sample],
                captures,
            )
            for one in growing
        ]
        return await self.session.compute(rows).take(len(rows))

    def _reason(self, one: _Growing, offset: int) -> FinishReason | None:
        """Why a continuation ends with its last token, if it does."""
        token = one.taken.token
        completed = one.stops is not None and one.stops.completed_by(token)
        if token in self.ends:
            return FinishReason.END_TOKEN
        if completed:
            return FinishReason.STOP
        return FinishReason.LENGTH if offset == self.generation.max_new_tokens - 1 else None

    def _finish(self, ended: list[_Growing]) -> None:
        """Counts the runs all of whose continuations have ended."""
        for one in ended:
            one.prompt.left -= 1
        self.session.finish(sum(not prompt.left for prompt in {id(one.prompt): one.prompt for one in ended}.values()))

    def _part(self, offset: int, some: list[_Growing], read: Sequence[Result] = ()) -> Generated:
        """The last tokens of some continuations; `read`: the results of reading them."""
        return Generated(
            offset,
            tuple(one.prompt.continued.number for one in some),
            tuple(one.sample for one in some),
            tuple(one.taken.token for one in some),
            tuple(one.reason for one in some),
            np.array([one.taken.log_probability for one in some], np.float32)
            if self.generation.log_probabilities
            else None,
            self._read(read) if read else self._unread(len(some)),
            self.encoding,
        )

    def _read(self, results: Sequence[Result]) -> tuple[Floats, ...]:
        """What was captured of each token, by site: [tokens, layers, 1, ...]."""
        found = []
        first = 0
        for site in self.generation.activations:
            layers = slice(first, first + len(site.layers))
            found.append(np.stack([[numbers(values) for values in result.captures[layers]] for result in results]))
            first = layers.stop
        return tuple(found)

    def _unread(self, count: int) -> tuple[Floats, ...]:
        """The same of tokens that are not read: [tokens, layers, 0, ...]."""
        shape_of = self.session.decoder.selected_shape
        return tuple(
            np.empty((count, len(site.layers), *shape_of(site.component, site.units, 0, 0)), np.float32)
            for site in self.generation.activations
        )


def _taken(continued: Continued, result: Result) -> list[Taken]:
    """The tokens that were chosen. Raises Overflow where there are none."""
    found = [one for one in result.taken if one is not None]
    if len(found) < len(result.taken):
        raise Overflow(continued.number, "the next token's distribution")
    return found


class Chooser:
    """The choices of one continuation of every run, step by step.

    At temperature 0 the largest logit is chosen. Above, step k adds the noise -log(-log(u)) to logits / temperature and
    chooses the largest (Gumbel-max), where u is row k of numpy.random.RandomState(seed).random_sample([steps, V]).
    """

    def __init__(self, generation: Generation, vocabulary: int, sample: int = 0) -> None:
        self._generation = generation
        self._vocabulary = vocabulary
        self._draws = np.random.RandomState((generation.seed + sample) % SEEDS)

    def at(self, position: int) -> Choice:
        """The choice of the token after `position`."""
        asked = self._generation
        if not asked.temperature:
            return Choice(position, log_probability=asked.log_probabilities)
        uniform = self._draws.random_sample(self._vocabulary)
        with np.errstate(divide="ignore"):  # A draw of 0, which is possible, is never the largest.
            noise = torch.from_numpy(-np.log(-np.log(uniform)))
        return Choice(position, asked.temperature, noise, asked.top_p, asked.log_probabilities)
