"""Sonde in process: questions through the scheduler to the methods, without gRPC."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from sonde_server import methods
from sonde_server.config import Settings
from sonde_server.questions.answers import Answer as Part
from sonde_server.questions.answers import Context
from sonde_server.questions.causal_tracing import CausalTracing, GaussianCorruption, RestorationGrid
from sonde_server.questions.edits import Edit, Scale
from sonde_server.questions.interventions import InterveneQuestion, Readings, Readout
from sonde_server.questions.places import Component, Site
from sonde_server.questions.plans import Intervention, InterventionList, Plan, Sweep
from sonde_server.questions.prompts import Prompt, Target
from sonde_server.questions.traces import TraceQuestion
from sonde_server.serving.server import Server
from sonde_server.sharing.driving import complete
from sonde_server.sharing.scheduler import Scheduler

from tests.bench.workloads import Answer, Caller, Callers, Grid, Heads, Neurons, OneNeuron, Workload, axes, cells


class InProcess:
    """Sonde without gRPC: questions through the scheduler to the methods."""

    name = "Sonde, in process"
    omitted: Mapping[str, str] = {}

    def __init__(self, scheduler: Scheduler, close: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self.close = close

    @classmethod
    def hosting(cls, model: Path) -> "InProcess":
        """Loads a model as the server does."""
        server = Server(Settings(model=str(model), port=0, device="cpu", dtype="float32"))
        server.start()
        return cls(server.scheduler, lambda: server.stop(0))

    def grid(self, workload: Grid) -> Answer:
        parts = self._answer(_tracing(workload))
        rows = [part.probabilities[..., 0] for part in parts if isinstance(part, RestorationGrid)]
        return cells(workload, np.concatenate(rows))

    def neurons(self, workload: Neurons) -> Answer:
        return self._runs(_neuron_question(workload))

    def heads(self, workload: Heads) -> Answer:
        return self._runs(_head_question(workload))

    def one_neuron(self, workload: OneNeuron) -> Answer:
        parts = self._answer(_one_neuron_question(workload))
        clean = next(part.clean for part in parts if isinstance(part, Context))
        changed = next(part for part in parts if isinstance(part, Readings))
        assert clean is not None
        return np.stack([clean.top_log_probabilities, changed.top_log_probabilities[0]]).astype(np.float64)

    def callers(self, workload: Callers) -> Answer:
        def ask(numbered: tuple[int, Caller]) -> Answer:
            return self._runs(_caller_question(numbered[1]), str(numbered[0]))

        with ThreadPoolExecutor(len(workload)) as pool:
            return np.stack(list(pool.map(ask, enumerate(workload.callers))))

    def cost(self, workload: Workload) -> tuple[int, int]:
        """Token-layers, and rows that are unembedded, as dry runs announce them."""
        match workload:
            case Grid():
                questions: list[TraceQuestion | InterveneQuestion] = [_tracing(workload)]
            case Neurons():
                questions = [_neuron_question(workload)]
            case Heads():
                questions = [_head_question(workload)]
            case OneNeuron():
                questions = [_one_neuron_question(workload)]
            case Callers():
                questions = [_caller_question(caller) for caller in workload.callers]
        costs = [
            part.cost
            for question in questions
            for part in self._answer(replace(question, dry_run=True))
            if isinstance(part, Context)
        ]
        token_layers, readings = sum(cost.token_layers for cost in costs), sum(cost.runs + 1 for cost in costs)
        if isinstance(workload, OneNeuron) and workload.again:
            # The unchanged run is known by then, and its prediction.
            return token_layers - len(workload.tokens) * self.scheduler.engine.layers, readings - 1
        return token_layers, readings

    def on_model_thread(self, work: Callable[[], object]) -> None:
        """Does something on the thread that owns the model."""
        with self.scheduler.session(caller="bench", cancelled=threading.Event()) as session:
            complete(session.call(work), session)

    def _runs(self, question: InterveneQuestion, caller: str = "bench") -> Answer:
        parts = self._answer(question, caller)
        readings = sorted((part for part in parts if isinstance(part, Readings)), key=lambda part: part.offset)
        return np.concatenate([part.log_probabilities[:, 0] for part in readings]).astype(np.float64)

    def _answer(self, question: TraceQuestion | InterveneQuestion, caller: str = "bench") -> list[Part]:
        with self.scheduler.session(caller=caller, cancelled=threading.Event()) as session:
            if isinstance(question, TraceQuestion):
                return list(methods.trace(question, session))
            return list(methods.intervene(question, session))


def _tracing(workload: Grid) -> TraceQuestion:
    method = CausalTracing(
        GaussianCorruption(standard_deviation=workload.standard_deviation, samples=workload.samples),
        replace=False,
        subject=workload.subject,
        components=(Component.RESIDUAL_POST,),
        window=10,
        layers=tuple(workload.layers),
        positions=tuple(workload.positions),
        per_sample=False,
    )
    last = len(workload.tokens) - 1
    return TraceQuestion(Prompt(workload.tokens), (Target(workload.target),), last, 0, method)


def _neuron_question(workload: Neurons) -> InterveneQuestion:
    layers, units = map(tuple, axes(workload.neurons))
    positions = (len(workload.tokens) - 1,)
    edit = Edit(Site(Component.NEURON, layers, units, positions), Scale(0.0))
    return _question(workload.tokens, Sweep(edit), workload.target)


def _head_question(workload: Heads) -> InterveneQuestion:
    layers, units = map(tuple, axes(workload.heads))
    edit = Edit(Site(Component.HEAD_OUT, layers, units), Scale(0.0))
    return _question(workload.tokens, Sweep(edit), workload.target)


def _one_neuron_question(workload: OneNeuron) -> InterveneQuestion:
    site = Site(Component.NEURON, (workload.layer,), (workload.neuron,), workload.positions)
    plan = InterventionList((Intervention((Edit(site, Scale(workload.factor)),)),))
    readout = Readout((), len(workload.tokens) - 1, workload.top)
    return InterveneQuestion(Prompt(workload.tokens), (), plan, readout)


def _caller_question(caller: Caller) -> InterveneQuestion:
    last = len(caller.tokens) - 1
    neurons = [Site(Component.NEURON, (caller.layer,), (unit,), (last,)) for unit in caller.neurons]
    sites = [*neurons, Site(Component.HEAD_OUT, (caller.layer,), (caller.head,))]
    runs = tuple(Intervention((Edit(site, Scale(0.0)),)) for site in sites)
    return _question(caller.tokens, InterventionList(runs), caller.target)


def _question(tokens: tuple[int, ...], plan: Plan, target: int) -> InterveneQuestion:
    return InterveneQuestion(Prompt(tokens), (), plan, Readout((Target(target),), len(tokens) - 1))
