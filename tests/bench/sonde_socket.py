"""Sonde over a loopback socket, as its users have it."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sonde

from tests.bench.workloads import NAMES, Answer, Caller, Callers, Grid, Heads, Neurons, OneNeuron, axes, cells

LISTENING = re.compile(r"listening on (\S+)")


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """A server in a process of its own, on a free port of the loopback. Gives its address once it serves."""
    command = [sys.executable, "-m", "sonde_server.cli", "--model", str(model), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        try:
            for line in process.stderr:
                said.append(line)
                if found := LISTENING.search(line):
                    break
            else:
                raise RuntimeError("the server did not start: " + "".join(said))
            # Whatever it says from now on must not fill the pipe.
            reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
            reader.start()
            with sonde.Client(found[1]) as client:
                client.wait_until_serving()
            yield found[1]
        finally:
            process.terminate()
            process.wait(timeout=30)
        reader.join()


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
        traced = self.client.trace(workload.tokens, targets=[workload.target], top_k=0, method=self._method(workload))
        return cells(workload, traced.restored["residual_post"][..., 0])

    def neurons(self, workload: Neurons) -> Answer:
        result = self.client.intervene(workload.tokens, _neuron_plan(workload), targets=[workload.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    def heads(self, workload: Heads) -> Answer:
        result = self.client.intervene(workload.tokens, _head_plan(workload), targets=[workload.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    def one_neuron(self, workload: OneNeuron) -> Answer:
        site = sonde.neuron(layer=workload.layer, unit=workload.neuron, position=-1 if workload.last else None)
        edit = sonde.scale(site, workload.factor)
        result = self.client.intervene(workload.tokens, [edit], top_k=workload.top)
        rows = [result.clean.top_tokens, result[0].top_tokens]
        return np.array([[token.log_probability for token in row] for row in rows])

    def callers(self, workload: Callers) -> Answer:
        if not self.at_once:
            return np.stack([self._call(self.client, caller) for caller in workload.callers])
        with ThreadPoolExecutor(len(workload)) as pool:
            return np.stack(list(pool.map(self._alone, workload.callers)))

    def _alone(self, caller: Caller) -> Answer:
        with sonde.Client(self.address) as client:
            return self._call(client, caller)

    @staticmethod
    def _call(client: sonde.Client, caller: Caller) -> Answer:
        result = client.intervene(caller.tokens, _caller_plan(caller), targets=[caller.target], top_k=0)
        return np.asarray(result.log_probabilities, dtype=np.float64).reshape(-1)

    @staticmethod
    def _method(workload: Grid) -> sonde.CausalTracing:
        return sonde.CausalTracing(
            subject=workload.subject,
            samples=workload.samples,
            standard_deviation=workload.standard_deviation,
            components="residual_post",
            layers=workload.layers,
            positions=workload.positions,
        )


def _neuron_plan(workload: Neurons) -> sonde.Sweep:
    layers, units = axes(workload.neurons)
    return sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=layers, units=units, positions=[-1])


def _head_plan(workload: Heads) -> sonde.Sweep:
    layers, units = axes(workload.heads)
    return sonde.sweep(sonde.scale(sonde.head(), 0.0), layers=layers, units=units, together="position")


def _caller_plan(caller: Caller) -> list[sonde.Edit]:
    edits = [sonde.scale(sonde.neuron(layer=caller.layer, unit=unit, position=-1), 0.0) for unit in caller.neurons]
    return [*edits, sonde.scale(sonde.head(layer=caller.layer, unit=caller.head), 0.0)]
