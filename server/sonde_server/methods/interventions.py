"""Interventions: one unchanged run, and one for every set of edits of a list or a sweep."""

from collections.abc import AsyncGenerator, Iterator

import numpy as np
from torch import Tensor

from ..engine import Reading, Result, Run, State
from ..questions.activations import Activation
from ..questions.answers import Answer, Floats, Progress
from ..questions.circuits import Circuits
from ..questions.generation import Generation
from ..questions.interventions import InterveneQuestion, Readings
from ..sharing.results import Results
from ..sharing.session import Session
from . import generation
from .activations import captures_of
from .circuits import CircuitRuns
from .opening import Clean, opening
from .placing import Placing
from .prediction import numbers

# Results are answered in groups of this many runs.
GROUP = 64
# Up to this many runs are computed beside the unchanged run; more would keep the caller waiting for its prediction.
FEW = 64


async def answer(question: InterveneQuestion, session: Session) -> AsyncGenerator[Answer, None]:
    """Context, then readings and activations run by run, with the progress."""
    if question.readout.generation is not None:
        generation.check(session.decoder, question.asked.tokens, question.readout.generation)
    changed = _Changed(question, session)
    context, clean = await opening(question, session, beside=changed.hand_in)
    yield context
    if clean is not None:
        async for part in changed.parts(clean):
            yield part


class _Changed:
    """The changed runs of a question."""

    def __init__(self, question: InterveneQuestion, session: Session) -> None:
        self.question = question
        self.session = session
        readout = question.readout
        self._captures = captures_of(readout.activations, question.asked.tokens, readout.pooling)
        self._wanted = tuple(capture for _, capture in self._captures)
        self._results: Results | None = None

    async def hand_in(self, clean: State) -> None:
        """Hands in the first runs before the unchanged one is waited for.

        A few runs share its batch, or are computed while its prediction is read and sent. More than a few are only laid
        out meanwhile. Runs that are continued are handed in later.
        """
        few = self.question.plan.count <= FEW and not self._wanted
        if not few:
            self.session.send()
        if self.question.readout.generation is None:
            runs = (run for run, _ in await self._runs(clean))
            self._results = self.session.run(runs, at_once=few)

    async def _runs(self, clean: State) -> Iterator[tuple[Run, generation.Lasting]]:
        """Every changed run, and its edits that last while it is continued. The sources are computed at once."""
        question, readout = self.question, self.question.readout
        reading = Reading(
            readout.position, readout.targets, readout.top_k, clean=clean, divergence=readout.kl_divergence
        )
        if isinstance(question.plan, Circuits):
            return await self._circuits(clean, question.plan, reading)
        placing = await Placing.of(question, self.session, clean)
        edits_per_run = question.plan.edits_per_run

        plan = question.plan

        def runs() -> Iterator[tuple[Run, generation.Lasting]]:
            for edits in plan.runs(self.session.layers):
                placed = placing.place(edits)
                detour = placing.detour(edits)
                run = Run(clean, placed, reading, self._wanted, edits_per_run, detour=detour)
                yield run, generation.lasting(edits, placed)

        return runs()

    async def _circuits(
        self, clean: State, plan: Circuits, reading: Reading
    ) -> Iterator[tuple[Run, generation.Lasting]]:
        sources = [self.question.sources[source] for source in plan.sources]
        positions = self.question.differing(plan)
        circuits = await CircuitRuns.of(self.session, clean, sources, reading, positions, self._wanted)
        nothing = generation.lasting((), [])
        return ((circuits.run(missing), nothing) for missing in plan.missing(self.session.decoder))

    async def parts(self, clean: Clean) -> AsyncGenerator[Answer, None]:
        """Readings and activations run by run, with the progress."""
        if self._wanted:
            values = await self.session.values(clean.state, self._wanted)
            for activation in self._activations(-1, values):
                yield activation
        if self.question.readout.generation is not None:
            async for part in self._continued(clean.state, self.question.readout.generation):
                yield part
            return
        assert self._results is not None
        offset = 0
        yield Progress(offset, self.question.plan.count, runs=True)
        while group := await self._results.take(GROUP):
            for part in self._report(offset, group):
                yield part
            offset += len(group)
            yield Progress(offset, self.question.plan.count, runs=True)

    async def _continued(self, clean: State, asked: Generation) -> AsyncGenerator[Answer, None]:
        """As `parts`, and the tokens that continue every run, the unchanged one first."""
        changed = await self._runs(clean)

        def runs() -> Iterator[generation.Continued]:
            if not asked.changed_only:
                yield generation.Continued(generation.CLEAN, Run(clean))
            for number, (run, lasting) in enumerate(changed):
                yield generation.Continued(number, run, lasting)

        question = self.question
        continuing = generation.Continuing(
            self.session, clean, question.plan.count, asked, question.readout.encoding, self._report
        )
        async for part in continuing.answer(runs()):
            yield part

    def _report(self, offset: int, group: list[Result]) -> Iterator[Answer]:
        """What was read of runs from `offset` on."""
        yield readings_of(offset, group, kl=self.question.readout.kl_divergence)
        for number, result in enumerate(group):
            yield from self._activations(offset + number, result.captures)

    def _activations(self, run: int, read: list[Tensor]) -> Iterator[Activation]:
        for (site, capture), values in zip(self._captures, read, strict=True):
            yield Activation(run, site, capture.layer, numbers(values), self.question.readout.encoding)


def readings_of(offset: int, group: list[Result], *, kl: bool) -> Readings:
    """What was read of runs from `offset` on."""

    # With numpy, which keeps the interpreter lock: torch would release it to the model's thread, and then wait for it.
    def column(name: str) -> Floats:
        if getattr(group[0], name) is None:
            # Runs that are not made of edits have no distances.
            return np.zeros((len(group), 0), np.float32)
        return np.stack([numbers(getattr(result, name)) for result in group])

    return Readings(
        offset,
        column("log_probabilities"),
        column("logits"),
        np.array([result.kl_divergence for result in group], dtype=np.float32) if kl else None,
        np.stack([result.top_tokens.numpy() for result in group if result.top_tokens is not None]),
        column("top_log_probabilities"),
        column("edit_norms"),
    )
