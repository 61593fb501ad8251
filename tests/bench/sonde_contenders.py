"""Sonde over a loopback socket, and in process through the scheduler, without gRPC."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sonde
from sonde_server import methods
from sonde_server.answers import Answer as Part
from sonde_server.answers import Context, Readings, RestorationGrid
from sonde_server.app import Server
from sonde_server.config import Settings
from sonde_server.domain import (
    CausalTracing,
    Component,
    Edit,
    GaussianCorruption,
    Intervention,
    InterveneQuestion,
    Prompt,
    Readout,
    Scale,
    Site,
    Sweep,
    Target,
    TraceQuestion,
)
from sonde_server.scheduler import Scheduler

from tests.bench.workloads import NAMES, Answer, Caller, Callers, Grid, Heads, Neurons, OneNeuron, Workload

LISTENING = re.compile(r"listening on (\S+)")


@contextmanager
def serving(model: Path, cache_bytes: int | None = None) -> Iterator[str]:
    """A server in a process of its own, on a free port of the loopback. Gives its address once it serves."""
    command = [sys.executable, "-m", "sonde_server.cli", "--model", str(model), "--port", "0", "--device", "cpu"]
    if cache_bytes is not None:
        command += ["--cache-bytes", str(cache_bytes)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := LISTENING.search(line):
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(lines))
        # Whatever it says from now on must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with sonde.Client(found[1]) as client:
            client.wait_until_serving()
        yield found[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


class Socket:
    """Sonde as its users have it: the Python client, gRPC, a server process."""

    def __init__(self, address: str, name: str = "Sonde, socket", *, at_once: bool = True) -> None:
        self.name = name
        self.address = address
        self.client = sonde.Client(address)
        self.at_once = at_once
        only = "it is there for W5, to compare with the same requests at once"
        self.omitted: Mapping[str, str] = {} if at_once else {name: only for name in NAMES if name != "W5"}

    def close(self) -> None:
        self.client.close()

    def grid(self, workload: Grid) -> Answer:
        traced = self.client.trace(workload.tokens, targets=[workload.target], top_k=0, method=self._tracing(workload))
        return _cells(workload, traced.restored["residual_post"][..., 0])

    def neurons(self, workload: Neurons) -> Answer:
        result = self.client.intervene(workload.tokens, _neuron_plan(workload), targets=[workload.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    def heads(self, workload: Heads) -> Answer:
        result = self.client.intervene(workload.tokens, _head_plan(workload), targets=[workload.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    def one_neuron(self, workload: OneNeuron) -> Answer:
        edit = sonde.scale(sonde.neuron(layer=workload.layer, unit=workload.neuron), workload.factor)
        result = self.client.intervene(workload.tokens, [edit], top_k=workload.top)
        rows = [result.clean.top_tokens, result[0].top_tokens]
        return np.array([[token.log_probability for token in row] for row in rows])

    def callers(self, workload: Callers) -> Answer:
        if not self.at_once:
            return np.stack([self._call(self.client, caller) for caller in workload.callers])
        with ThreadPoolExecutor(len(workload)) as pool:
            return np.stack(list(pool.map(self._alone, workload.callers)))

    def cost(self, workload: Workload) -> tuple[int, int]:
        """Token-layers and runs, as a dry run announces them."""
        match workload:
            case Grid():
                method = self._tracing(workload)
                cost = self.client.trace(workload.tokens, targets=[workload.target], method=method, dry_run=True).cost
            case Neurons():
                plan = _neuron_plan(workload)
                cost = self.client.intervene(workload.tokens, plan, targets=[workload.target], dry_run=True).cost
            case Heads():
                plan = _head_plan(workload)
                cost = self.client.intervene(workload.tokens, plan, targets=[workload.target], dry_run=True).cost
            case OneNeuron():
                edit = sonde.scale(sonde.neuron(layer=workload.layer, unit=workload.neuron), workload.factor)
                cost = self.client.intervene(workload.tokens, [edit], dry_run=True).cost
                if workload.again:
                    return cost.token_layers - len(workload.tokens) * self.client.model.layers, cost.runs
            case Callers():
                costs = [
                    self.client.intervene(caller.tokens, _caller_plan(caller), dry_run=True).cost
                    for caller in workload.callers
                ]
                return sum(cost.token_layers for cost in costs), sum(cost.runs + 1 for cost in costs)
        return cost.token_layers, cost.runs + 1

    def _alone(self, caller: Caller) -> Answer:
        with sonde.Client(self.address) as client:
            return self._call(client, caller)

    @staticmethod
    def _call(client: sonde.Client, caller: Caller) -> Answer:
        result = client.intervene(caller.tokens, _caller_plan(caller), targets=[caller.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    @staticmethod
    def _tracing(workload: Grid) -> sonde.CausalTracing:
        return sonde.CausalTracing(
            subject=workload.subject,
            samples=workload.samples,
            standard_deviation=workload.standard_deviation,
            components="residual_post",
            layers=workload.layers,
            positions=workload.positions,
        )


def _neuron_plan(workload: Neurons) -> sonde.Sweep:
    layers, units = _axes(workload.neurons)
    return sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=layers, units=units, positions=[-1])


def _head_plan(workload: Heads) -> sonde.Sweep:
    layers, units = _axes(workload.heads)
    return sonde.sweep(sonde.scale(sonde.head(), 0.0), layers=layers, units=units, together="position")


def _caller_plan(caller: Caller) -> list[sonde.Edit]:
    edits = [sonde.scale(sonde.neuron(layer=caller.layer, unit=unit, position=-1), 0.0) for unit in caller.neurons]
    return [*edits, sonde.scale(sonde.head(layer=caller.layer, unit=caller.head), 0.0)]


def _axes(places: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The two axes of a full product of blocks and units."""
    layers = list(dict.fromkeys(layer for layer, _ in places))
    units = list(dict.fromkeys(unit for _, unit in places))
    assert list(places) == [(layer, unit) for layer in layers for unit in units]
    return layers, units


def _cells(workload: Grid, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Answer:
    """The workload's cells of a grid [positions, layers]."""
    rows = {position: number for number, position in enumerate(workload.positions)}
    columns = {layer: number for number, layer in enumerate(workload.layers)}
    return np.array([values[rows[position], columns[layer]] for position, layer in workload.cells], dtype=np.float64)


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
        method = CausalTracing(
            GaussianCorruption(None, workload.standard_deviation, workload.samples),
            replace=False,
            subject=workload.subject,
            components=(Component.RESIDUAL_POST,),
            window=10,
            layers=tuple(workload.layers),
            positions=tuple(workload.positions),
            per_sample=False,
        )
        last = len(workload.tokens) - 1
        question = TraceQuestion(Prompt(workload.tokens), (Target(workload.target),), last, 0, method)
        parts = self._answer(methods.trace, question)
        rows = [part.probabilities[..., 0] for part in parts if isinstance(part, RestorationGrid)]
        return _cells(workload, np.concatenate(rows))

    def neurons(self, workload: Neurons) -> Answer:
        layers, units = _axes(workload.neurons)
        positions = (len(workload.tokens) - 1,)
        edit = Edit(Site(Component.NEURON, tuple(layers), tuple(units), positions), Scale(0.0))
        plan = Sweep(edit, tuple(layers), tuple(units), positions, frozenset(), 1, ())
        return self._runs(workload.tokens, plan, workload.target)

    def heads(self, workload: Heads) -> Answer:
        layers, units = _axes(workload.heads)
        edit = Edit(Site(Component.HEAD_OUT, tuple(layers), tuple(units)), Scale(0.0))
        plan = Sweep(edit, tuple(layers), tuple(units), None, frozenset(), 1, ())
        return self._runs(workload.tokens, plan, workload.target)

    def one_neuron(self, workload: OneNeuron) -> Answer:
        site = Site(Component.NEURON, (workload.layer,), (workload.neuron,))
        plan = (Intervention((Edit(site, Scale(workload.factor)),)),)
        readout = Readout((), len(workload.tokens) - 1, workload.top)
        parts = self._answer(methods.intervene, InterveneQuestion(Prompt(workload.tokens), (), plan, readout))
        clean = next(part.clean for part in parts if isinstance(part, Context))
        changed = next(part for part in parts if isinstance(part, Readings))
        assert clean is not None
        return np.stack([clean.top_log_probabilities, changed.top_log_probabilities[0]]).astype(np.float64)

    def callers(self, workload: Callers) -> Answer:
        with ThreadPoolExecutor(len(workload)) as pool:
            return np.stack(list(pool.map(self._call, workload.callers, range(len(workload)))))

    def _call(self, caller: Caller, number: int) -> Answer:
        last = len(caller.tokens) - 1
        neurons = [Site(Component.NEURON, (caller.layer,), (unit,), (last,)) for unit in caller.neurons]
        sites = [*neurons, Site(Component.HEAD_OUT, (caller.layer,), (caller.head,))]
        plan = tuple(Intervention((Edit(site, Scale(0.0)),)) for site in sites)
        return self._runs(caller.tokens, plan, caller.target, str(number))

    def _runs(
        self, tokens: tuple[int, ...], plan: tuple[Intervention, ...] | Sweep, target: int, caller: str = "bench"
    ) -> Answer:
        question = InterveneQuestion(Prompt(tokens), (), plan, Readout((Target(target),), len(tokens) - 1))
        parts = self._answer(methods.intervene, question, caller)
        readings = sorted((part for part in parts if isinstance(part, Readings)), key=lambda part: part.offset)
        return np.concatenate([part.log_probabilities[:, 0] for part in readings]).astype(np.float64)

    def _answer(self, method: Callable[..., Iterator[Part]], question: object, caller: str = "bench") -> list[Part]:
        with self.scheduler.session(caller=caller, cancelled=threading.Event()) as session:
            return list(method(question, session))
