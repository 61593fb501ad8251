"""Causal scrubbing (Chan et al. 2022): runs of examples in which other examples' values take the claimed places.

Every example is run once, unchanged; leaves are values of these runs. A node with children is a run of its own, which
ends at the node's block. Those that go the deepest come first, and all of one depth share batches.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Run, State
from ..engine.runs import Detour, Reads, Send
from ..questions.answers import Answer, CaseAnswer, Context, Progress
from ..questions.causal_scrubbing import CausalScrubbing, ExampleReadings
from ..questions.kernels import attention_of
from ..questions.places import KEPT, Component, Place
from ..questions.scrubbing_tasks import Leaf, Task
from ..sharing.session import Session
from .interventions import readings_of
from .prediction import predict


async def answer(question: CausalScrubbing, session: Session) -> AsyncGenerator[Answer, None]:
    """By reference: its context, what is read of every example, its runs with their draws; and the progress."""
    if question.dry_run:
        yield _announced(question, session)
        return
    total = question.runs(session.decoder)
    yield Progress(0, total, True, 0, len(question.references))
    scrubbing = await _Scrubbing.of(question, session)
    done = 0
    for chunk in question.chunks():
        async for part in scrubbing.parts(chunk):
            yield part
            if isinstance(part, CaseAnswer) and isinstance(part.part, Context):
                continue
        done += len(chunk)
        yield Progress(done * question.samples, total, True, done, len(question.references))


def _announced(question: CausalScrubbing, session: Session) -> Context:
    decoder = session.decoder
    restarts = question.restarts(decoder)
    attention = attention_of(decoder.attention, restarts)
    return Context((), question.asked(0).targets, 0, None, question.cost(decoder, restarts), attention)


class _Scrubbing:
    """The runs of one question."""

    def __init__(self, question: CausalScrubbing, session: Session, states: Sequence[State]) -> None:
        self.question = question
        self.session = session
        self.states = states
        self._nodes = question.hypothesis.nodes
        # By example, component and layer: values of the unchanged run, and at which positions.
        self._read: dict[tuple[int, Component, int], tuple[Tensor, tuple[int, ...]]] = {}

    @classmethod
    async def of(cls, question: CausalScrubbing, session: Session) -> "_Scrubbing":
        """Runs every example, and reads what is needed of them."""
        bases = [Base.of(prompt) for prompt in question.prompts]
        scrubbing = cls(question, session, await session.states(bases, read=question.position))
        await scrubbing._read_examples()
        return scrubbing

    async def _read_examples(self) -> None:
        """Reads values of unchanged runs. What is not kept of them is run again, many at a time."""
        engine, again = self.session.engine, []
        for example, places in self.question.read_of.items():
            captures = [Capture(*place, positions) for place, positions in places.items()]
            for one in captures:
                if one.component in KEPT:
                    values = engine.kept(self.states[example], one)
                    self._read[example, one.component, one.layer] = values, one.positions
            rest = tuple(one for one in captures if one.component not in KEPT)
            if rest:
                again.append((example, rest))
        rows = (engine.run_row(Run(self.states[example], captures=rest)) for example, rest in again)
        results = self.session.compute(rows)
        for example, rest in again:
            (result,) = await results.take(1)
            for one, values in zip(rest, result.captures, strict=True):
                self._read[example, one.component, one.layer] = values, one.positions

    async def parts(self, chunk: range) -> AsyncGenerator[Answer, None]:
        """The answers about some references."""
        question, session = self.question, self.session
        tasks = question.tasks(chunk)
        found: dict[Task, list[Tensor]] = {}
        for wave in tasks.waves():
            results = session.compute([session.engine.run_row(self._run(task, found)) for task in wave])
            for task in wave:
                (result,) = await results.take(1)
                found[task] = result.captures
        contexts = [await self._context(number) for number in chunk]
        readings = [self._reading(number, context) for number, context in zip(chunk, contexts, strict=True)]
        runs = (
            self._run(task, found, reading)
            for reading, own in zip(readings, tasks.predictions, strict=True)
            for task in own
        )
        results = session.run(runs)
        for number, context, reading in zip(chunk, contexts, readings, strict=True):
            case, kl = question.references[number], reading.divergence
            yield CaseAnswer(case, context)
            examples = await session.read(self.states, reading)
            yield CaseAnswer(case, ExampleReadings(readings_of(0, examples, kl=kl)))
            scrubbed = readings_of(0, await results.take(question.samples), kl=kl)
            yield CaseAnswer(case, replace(scrubbed, draws=question.draws[number]))

    async def _context(self, number: int) -> Context:
        """How the answer about a reference opens."""
        question, session = self.question, self.session
        asked = question.asked(number)
        state = self.states[question.references[number]]
        targets, prediction = await predict(session, state, asked.targets, asked.position, asked.top_k)
        own = slice(number, number + 1)
        alone = replace(
            question,
            references=question.references[own],
            readouts=question.readouts[own],
            draws=question.draws[own],
        )
        restarts = alone.restarts(session.decoder)
        cost = alone.cost(session.decoder, restarts)
        attention = attention_of(session.decoder.attention, restarts)
        prompt = asked.prompt
        return Context(
            prompt.tokens, targets, asked.position, prediction, cost, attention, None, prompt.spans, prompt.image
        )

    def _reading(self, number: int, context: Context) -> Reading:
        readout = self.question.readouts[number]
        state = self.states[self.question.references[number]]
        return Reading(context.position, context.targets, readout.top_k, clean=state, divergence=readout.kl_divergence)

    # ------------------------------------------------------------ runs

    def _run(self, task: Task, found: dict[Task, list[Tensor]], reading: Reading | None = None) -> Run:
        """The run of a node, with its children's values in their places."""
        edits: list[PlacedEdit] = []
        sends: list[Send] = []
        for child, value in task.values:
            node = self._nodes[child]
            assert node.site is not None
            positions = node.positions[task.example]
            given = self._leaf(value) if isinstance(value, Leaf) else found[value]
            for layer, values in zip(node.site.layers, given, strict=True):
                edit = PlacedEdit(node.site.component, layer, positions, node.site.units, Change("set", values))
                if node.direct:
                    sends.append(Send(edit, 0, self._of(task.example, node.site.component, layer, positions)))
                else:
                    edits.append(edit)
        captures: tuple[Capture, ...] = ()
        node = self._nodes[task.node]
        if reading is None:
            assert node.site is not None
            captures = tuple(
                Capture(node.site.component, layer, node.positions[task.example], node.site.units)
                for layer in node.site.layers
            )
        detour = self._detour(task, sends) if sends else None
        return Run(self.states[task.example], edits, reading, captures, detour=detour)

    def _detour(self, task: Task, sends: list[Send]) -> Detour:
        """What the direct children send to the reads of their node; they go together, in one column."""
        decoder = self.session.decoder
        senders = [Place(send.edit.component, send.edit.layer, send.edit.positions) for send in sends]
        reads = []
        for place, units in task.receivers(self.question.hypothesis, decoder, self.question.position, senders):
            whole = place.component in (Component.MLP_OUT, Component.LOGITS)
            columns = torch.zeros(1 if whole else decoder.units(place.component), 1, dtype=torch.bool)
            columns[slice(None) if whole or units is None else list(units)] = True
            reads.append(Reads(place.component, place.layer, columns, place.positions))
        return Detour(1, tuple(sends), tuple(reads))

    def _leaf(self, leaf: Leaf) -> list[Tensor]:
        """The value of a node in an unchanged run, by layer."""
        node = self._nodes[leaf.node]
        assert node.site is not None
        site, positions = node.site, node.positions[leaf.example]
        values = [self._of(leaf.example, site.component, layer, positions) for layer in site.layers]
        return values if site.units is None else [value[:, list(site.units)] for value in values]

    def _of(self, example: int, component: Component, layer: int, positions: tuple[int, ...]) -> Tensor:
        """Values of an unchanged run, of all units."""
        values, there = self._read[example, component, layer]
        return values if there == positions else values[[there.index(position) for position in positions]]
