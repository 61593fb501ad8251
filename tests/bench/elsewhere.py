"""Sonde in a process of its own, that of the caller and the model in one.

Every thread that computes brings a pool of workers along, and where there are more of them than cores OpenMP lets them
sleep between operations. Sonde's model has a thread of its own; beside it the peers, who compute in the main thread of
the benchmark, would pay for that, and Sonde for them.
"""

import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sonde_server.sharing.scheduler import leave_the_cores_to_the_model

from tests.bench.contender import ask
from tests.bench.profile import Profile, profiled
from tests.bench.sonde_in_process import InProcess
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron, Workload

JOINING_SECONDS = 30


class Elsewhere:
    """Asks an InProcess of another process."""

    name = InProcess.name
    omitted: Mapping[str, str] = {}

    def __init__(self, model: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model), daemon=True)
        self._process.start()
        theirs.close()
        self._result()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(JOINING_SECONDS)

    def grid(self, workload: Grid) -> Answer:
        return self._answer(workload)

    def neurons(self, workload: Neurons) -> Answer:
        return self._answer(workload)

    def heads(self, workload: Heads) -> Answer:
        return self._answer(workload)

    def one_neuron(self, workload: OneNeuron) -> Answer:
        return self._answer(workload)

    def callers(self, workload: Callers) -> Answer:
        return self._answer(workload)

    def cost(self, workload: Workload) -> tuple[int, int]:
        """Token-layers, and rows that are unembedded."""
        cost: tuple[int, int] = self._ask("cost", workload)
        return cost

    def profiled(self, name: str, workload: Workload, vocabulary: int) -> Profile:
        """What the time of a workload goes to."""
        profile: Profile = self._ask("profiled", name, workload, vocabulary)
        return profile

    def _answer(self, workload: Workload) -> Answer:
        answer: Answer = self._ask("ask", workload)
        return answer

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._result()

    def _result(self) -> Any:
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result


def _serve(pipe: Connection, model: Path) -> None:
    """Answers until the pipe is closed."""
    sonde = InProcess.hosting(model)
    leave_the_cores_to_the_model()
    pipe.send(None)
    while True:
        try:
            kind, *given = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(_does(sonde, kind, given))
        except Exception as error:  # noqa: BLE001 - it belongs to the one who asked
            pipe.send(RuntimeError(repr(error)))
    sonde.close()


def _does(sonde: InProcess, kind: str, given: list[Any]) -> Any:
    if kind == "ask":
        return ask(sonde, given[0])
    if kind == "cost":
        return sonde.cost(given[0])
    name, workload, vocabulary = given
    return profiled(name, sonde, workload, vocabulary)
