"""Interventions: one run unchanged, and one for every set of edits, from a list or a sweep."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Activation, Answer, Context, Cost, Floats, Progress, Readings, SweepAxes
from ..questions.edits import Add, Edit, Knockout, Multiply, Noise, Operation, Patch, ProjectOut, Scale, Set
from ..questions.extents import extent_of, reread
from ..questions.interventions import InterveneQuestion
from ..questions.places import LAYERLESS, PAIRWISE, Component, Site
from ..questions.plans import Axis, Sweep
from ..sharing.session import Session
from . import generation
from .activations import captures_of, size_of
from .causal_tracing import window
from .prediction import attention_for, numbers, predict

# Results are handed on in groups of this many runs.
GROUP = 64
# So few runs may be computed beside the unchanged run; more would keep the caller waiting for its prediction.
TOGETHER = 64


def answer(question: InterveneQuestion, session: Session) -> Iterator[Answer]:
    """Context, then readings and activations run by run, with the progress."""
    readout, tokens = question.readout, question.prompt.tokens
    if readout.generation is not None:
        generation.check(session.engine, len(tokens), readout.generation)
    plan = Plan(question, session)
    attention = attention_for(plan.components())
    cost = plan.cost()
    if question.dry_run:
        yield Context(tokens, readout.targets, readout.position, None, cost, attention, axes=plan.axes())
        return
    captures = captures_of(readout.activations, len(tokens))
    wanted = tuple(capture for _, capture in captures)
    clean = session.start(Base(tokens), read=readout.position)
    reading = Reading(readout.position, readout.targets, readout.top_k, clean=clean, divergence=readout.kl_divergence)
    together = plan.count <= TOGETHER and not wanted
    if not together:
        session.send()
    results = None
    if readout.generation is None:
        # Few runs go with the unchanged one, and the model goes on with them while its prediction is read and sent.
        # More are laid out while it is computed.
        results = _run(plan, clean, reading, wanted, at_once=together)
    session.ready([clean])
    targets, prediction = predict(session, clean, readout.targets, readout.position, readout.top_k)
    yield Context(tokens, targets, readout.position, prediction, cost, attention, axes=plan.axes())
    if wanted:
        yield from _activations(-1, captures, session.values(clean, wanted))

    def report(offset: int, group: list[Result]) -> Iterator[Answer]:
        yield _readings(offset, group, kl=readout.kl_divergence)
        for number, result in enumerate(group):
            yield from _activations(offset + number, captures, result.captures)

    if results is None:
        assert readout.generation is not None
        runs = _continued(plan, clean, reading, wanted)
        yield from generation.answer(session, clean, runs, plan.count, readout.generation, report)
        return
    offset = 0
    yield Progress(offset, plan.count)
    while group := list(islice(results, GROUP)):
        yield from report(offset, group)
        offset += len(group)
        yield Progress(offset, plan.count)


def _run(
    plan: "Plan", clean: State, reading: Reading, wanted: tuple[Capture, ...], *, at_once: bool
) -> Iterator[Result]:
    plan.read_sources()
    receipts = plan.receipts
    runs = (Run(clean, plan.place(edits), reading, wanted, receipts) for edits in plan.runs())
    return plan.session.run(runs, at_once=at_once)


def _continued(
    plan: "Plan", clean: State, reading: Reading, wanted: tuple[Capture, ...]
) -> Iterator[generation.Continued]:
    """The unchanged run and the changed ones, to be continued."""
    plan.read_sources()
    yield generation.Continued(generation.CLEAN, Run(clean))
    for number, edits in enumerate(plan.runs()):
        placed = plan.place(edits)
        run = Run(clean, placed, reading, wanted, plan.receipts)
        yield generation.Continued(number, run, generation.lasting(edits, placed))


class Plan:
    """The runs of a question, before and after their places in the model are worked out."""

    def __init__(self, question: InterveneQuestion, session: Session) -> None:
        self.question = question
        self.session = session
        self.tokens = len(question.prompt.tokens)
        self.layers = session.engine.layers
        self.sources: list[State] = []
        self._sourced: dict[tuple[int, Capture], Tensor] = {}
        self._values: dict[int, Tensor] = {}
        plan = question.plan
        if isinstance(plan, Sweep):
            self.receipts = len(plan.always) + 1
            self.count = len(self._layer_axis(plan)) * len(self._unit_axis(plan)) * len(self._position_axis(plan))
        else:
            self.receipts = max(len(intervention.edits) for intervention in plan)
            self.count = len(plan)

    # ------------------------------------------------------------ what the plan says

    def runs(self) -> Iterator[tuple[Edit, ...]]:
        """The edits of every run, in the plan's order."""
        plan = self.question.plan
        if not isinstance(plan, Sweep):
            yield from (intervention.edits for intervention in plan)
            return
        component = plan.edit.site.component
        for layers in self._layer_axis(plan):
            for units in self._unit_axis(plan):
                for positions in self._position_axis(plan):
                    site = Site(component, layers, units, positions, plan.edit.site.from_position)
                    yield (*plan.always, Edit(site, self._at(plan, positions)))

    def axes(self) -> SweepAxes | None:
        """The resolved axes of a sweep; one that every run takes together has no entries."""
        plan = self.question.plan
        if not isinstance(plan, Sweep):
            return None

        def entries(axis: Axis, values: tuple[int, ...] | None) -> tuple[int, ...]:
            return () if axis in plan.together or values is None else values

        layers = None if plan.edit.site.component in LAYERLESS else plan.layers
        return SweepAxes(
            entries(Axis.LAYER, layers), entries(Axis.UNIT, plan.units), entries(Axis.POSITION, plan.positions)
        )

    def components(self) -> set[Component]:
        """Every component that is edited or read."""
        plan = self.question.plan
        edits: Sequence[Edit]
        if isinstance(plan, Sweep):
            edits = (*plan.always, plan.edit)
        else:
            edits = [edit for intervention in plan for edit in intervention.edits]
        return {site.component for site in (*(edit.site for edit in edits), *self.question.readout.activations)}

    def cost(self) -> Cost:
        """Exact before anything runs; an answer from a cached base, or one that an end token ends, costs less."""
        readout = self.question.readout
        captures = [capture for _, capture in captures_of(readout.activations, self.tokens)]
        full = self.tokens * self.layers
        work = full
        known: dict[object, int] = {}
        for edits in self.runs():
            # Runs of a sweep differ mostly in their units, of which the work does not depend.
            key = tuple(
                (edit.site.component, edit.site.layers, edit.site.positions, edit.site.from_position) for edit in edits
            )
            if key not in known:
                known[key] = self._work(edits, captures)
            work += known[key]
        others = sum(len(tokens) * self.layers for tokens in self._other_prompts())
        read = [
            (self.tokens, captures),
            *((len(source.tokens), self._captures(number)) for number, source in enumerate(self.question.sources)),
        ]
        again = [(reread(wanted, length, self.layers), length * self.layers) for length, wanted in read]
        work += others + sum(some for some, _ in again)
        total = full * (self.count + 1) + others + sum(whole for some, whole in again if some)
        if readout.generation is not None:
            added = generation.token_layers(self.count + 1, self.tokens, self.layers, readout.generation)
            work, total = work + added[0], total + added[1]
        columns = 2 * max(1, len(readout.targets)) + readout.kl_divergence + 2 * readout.top_k + self.receipts
        size = 4 * self.count * columns
        size += (self.count + 1) * size_of(self.session, readout.activations, self.tokens)
        if readout.generation is not None:
            size += (self.count + 1) * readout.generation.answer_bytes
        return Cost(self.count, work, total, size)

    def _work(self, edits: tuple[Edit, ...], captures: list[Capture]) -> int:
        """Positions x blocks of one run."""
        nothing = Change("multiply", 1.0)
        placed = [
            PlacedEdit(edit.site.component, layer, edit.site.positions_within(self.tokens), None, nothing)
            for edit in edits
            for layer in edit.site.layers
        ]
        readout = self.question.readout
        continued = readout.generation is not None
        return extent_of(placed, captures, readout.position, self.tokens, self.layers, continued=continued).token_layers

    def _other_prompts(self) -> set[tuple[int, ...]]:
        """The sources that are not the prompt itself, each once."""
        return {source.tokens for source in self.question.sources} - {self.question.prompt.tokens}

    def _captures(self, source: int) -> list[Capture]:
        """What the patches take from a source."""
        return [capture for (number, *_), capture in self._taken.items() if number == source]

    @cached_property
    def _taken(self) -> dict[tuple[int, Component, int], Capture]:
        """By source, component and layer: the positions that the patches take."""
        positions: dict[tuple[int, Component, int], set[int]] = defaultdict(set)
        for edits in self.runs():
            for edit in edits:
                if isinstance(edit.operation, Patch):
                    taken = self._positions(edit.site, edit.operation)
                    for source in edit.operation.sources:
                        for layer in edit.site.layers:
                            positions[source, edit.site.component, _layer(edit.operation, layer)].update(taken)
        return {key: Capture(key[1], key[2], tuple(sorted(taken))) for key, taken in positions.items()}

    def _positions(self, site: Site, patch: Patch) -> tuple[int, ...]:
        return patch.positions if patch.positions is not None else site.positions_within(self.tokens)

    # ------------------------------------------------------------ where it lies in the model

    def read_sources(self) -> None:
        """Runs the sources, whose values the patches need."""
        self.sources = self.session.states([Base(source.tokens) for source in self.question.sources])
        for number, state in enumerate(self.sources):
            captures = self._captures(number)
            found = zip(captures, self.session.values(state, captures), strict=True)
            self._sourced.update(((number, capture), values) for capture, values in found)

    def place(self, edits: tuple[Edit, ...]) -> list[PlacedEdit]:
        """The edits of one run, layer by layer, each with the number of its receipt."""
        return [
            PlacedEdit(
                edit.site.component,
                layer,
                edit.site.positions_within(self.tokens),
                edit.site.units,
                self._change(edit, layer),
                receipt,
            )
            for receipt, edit in enumerate(edits)
            for layer in edit.site.layers
        ]

    def _change(self, edit: Edit, layer: int) -> Change:
        match edit.operation:
            case Scale(factor):
                change = Change("multiply", factor)
            case Set(values):
                change = Change("set", self._tensor(values))
            case Add(values):
                change = Change("add", self._tensor(values))
            case Multiply(values):
                change = Change("multiply", self._tensor(values))
            case ProjectOut(direction):
                change = Change("project", self._tensor(direction))
            case Knockout(keys):
                change = Change("knockout", keys=keys)
            case Noise() as noise:
                change = Change("add", self._noise(edit.site, noise))
            case Patch() as patch:
                change = Change("set", self._patch(edit.site, patch, layer))
        return change

    def _tensor(self, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Tensor:
        """One tensor for an array, however many runs share it."""
        if id(values) not in self._values:
            self._values[id(values)] = torch.from_numpy(np.array(values)).to(self.session.engine.decoder.device)
        return self._values[id(values)]

    def _noise(self, site: Site, noise: Noise) -> Tensor:
        positions = len(site.positions_within(self.tokens))
        shape = self.session.engine.decoder.selected_shape(site.component, site.units, positions, self.tokens)
        drawn = np.random.RandomState(noise.seed).randn(*shape)
        return torch.from_numpy(drawn * noise.standard_deviation)

    def _patch(self, site: Site, patch: Patch, layer: int) -> Tensor:
        """Mean over the sources of the site's value, in the shape that the run selects."""
        values = []
        for source in patch.sources:
            capture = self._taken[source, site.component, _layer(patch, layer)]
            rows = [capture.positions.index(position) for position in self._positions(site, patch)]
            values.append(_select(self._sourced[source, capture], site, rows))
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    # ------------------------------------------------------------ the axes of a sweep

    def _layer_axis(self, plan: Sweep) -> list[tuple[int, ...]]:
        windows = [window(layer, plan.layer_window, self.layers) for layer in plan.layers]
        if Axis.LAYER in plan.together:
            return [tuple(sorted({layer for around in windows for layer in around}))]
        return windows

    def _unit_axis(self, plan: Sweep) -> Sequence[tuple[int, ...] | None]:
        if plan.units is None or Axis.UNIT in plan.together:
            return [plan.units]
        return [(unit,) for unit in plan.units]

    def _position_axis(self, plan: Sweep) -> Sequence[tuple[int, ...] | None]:
        if plan.positions is None or Axis.POSITION in plan.together:
            return [plan.positions]
        return [(position,) for position in plan.positions]

    def _at(self, plan: Sweep, positions: tuple[int, ...] | None) -> Operation:
        """The sweep's operation for one run: source positions are paired with the axis."""
        operation = plan.edit.operation
        if isinstance(operation, Patch) and operation.positions is not None and plan.positions and positions:
            paired = dict(zip(plan.positions, operation.positions, strict=True))
            return replace(operation, positions=tuple(paired[position] for position in positions))
        return operation


def _layer(patch: Patch, layer: int) -> int:
    """Where a patch of this layer takes its values."""
    return layer if patch.layer is None else patch.layer


def _select(values: Tensor, site: Site, positions: Sequence[int]) -> Tensor:
    rows = torch.tensor(positions, device=values.device)
    units = None if site.units is None else torch.tensor(site.units, device=values.device)
    if site.component in PAIRWISE:
        chosen = values if units is None else values[units]
        return chosen[:, rows]
    chosen = values[rows]
    return chosen if units is None else chosen[:, units]


def _activations(run: int, captures: list[tuple[int, Capture]], read: list[Tensor]) -> Iterator[Activation]:
    for (site, capture), values in zip(captures, read, strict=True):
        yield Activation(run, site, capture.layer, numbers(values))


def _readings(offset: int, group: list[Result], *, kl: bool) -> Readings:
    # By numpy, which keeps the interpreter meanwhile: torch would give it to the model's thread, and wait for it again.
    def column(name: str) -> Floats:
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
