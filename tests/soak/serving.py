"""A server in a process of its own that tells, when it is asked, what it holds; and what it is asked."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sonde

from tests.support.process import server_of

SECONDS = 60.0
TOLERANCE = 1e-5
"""Answers may share their batches with others, and float32 sums then come in another order."""
PROGRAM = """
import gc, os, signal, sys, threading
from sonde_server import cli
from sonde_server.serving import server

load = server.Server.load

def watched(self):
    load(self)
    modules = list(self.model.modules())
    def tell(*_):
        gc.collect()
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)
        waiting = self.scheduler.statistics().waiting_runs
        # In one piece, and apart from a log line that another thread is writing.
        os.write(2, f"\\nholds {hooks} {threading.active_count()} {waiting}\\n".encode())
    signal.signal(signal.SIGUSR1, tell)

server.Server.load = watched
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Holdings:
    """What a process holds on to."""

    resident_bytes: int
    hooks: int
    threads: int
    waiting: int


class ServerProcess:
    """A running server. Its log is read all along, so that it never waits for a reader."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._wait("listening on ").split()[-1]
        self._wait("serving ")

    def _read(self) -> None:
        for line in self.process.stderr or ():
            # A line for every call would only fill the memory.
            if line.strip() and " by " not in line:
                with self._came:
                    self._lines.append(line.rstrip())
                    self._came.notify_all()
        with self._came:
            self._lines.append("")
            self._came.notify_all()

    def _wait(self, beginning: str, after: int = 0) -> str:
        def found() -> str | None:
            return next((line for line in self._lines[after:] if line.startswith(beginning)), None)

        with self._came:
            self._came.wait_for(lambda: found() is not None or "" in self._lines, SECONDS)
            line = found()
        if line is None:
            raise RuntimeError(f"the server did not say {beginning!r}: {self._lines[-20:]}")
        return line

    def holdings(self) -> Holdings:
        """What it holds now."""
        before = len(self._lines)
        self.process.send_signal(signal.SIGUSR1)
        _, hooks, threads, waiting = self._wait("holds ", before).split()
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return Holdings(pages * os.sysconf("SC_PAGE_SIZE"), int(hooks), int(threads), int(waiting))

    def kill(self) -> None:
        """As a machine does that loses its power."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator does; the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


@contextmanager
def serving(model: Path | str, port: int = 0, *flags: str) -> Iterator[ServerProcess]:
    """A server of its own, killed in the end if it still runs."""
    with server_of(model, port, *flags, program=("-c", PROGRAM)) as process:
        yield ServerProcess(process)


# ------------------------------------------------------------------ questions

Floats = npt.NDArray[Any]
Question = Callable[[sonde.Client, float | None], Floats]
IDS = [5, 130, 77, 301, 9, 260, 41]


def _neurons(layer: int) -> Question:
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[layer], positions=[-1])
    return lambda client, timeout: client.intervene(IDS, plan, targets=[41], timeout=timeout).log_probabilities


def _long(client: sonde.Client, timeout: float | None) -> Floats:
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[0, 1])
    return client.intervene(IDS, plan, targets=[41], timeout=timeout).log_probabilities


def _traced(client: sonde.Client, timeout: float | None) -> Floats:
    method = sonde.CausalTracing(subject=[1, 2], samples=3)
    return client.trace(IDS, targets=[41], method=method, timeout=timeout).restored["residual_post"]


def _lens(client: sonde.Client, timeout: float | None) -> Floats:
    return client.trace(IDS, targets=[41], method=sonde.TokenProbability(), timeout=timeout).probabilities


def _patched(client: sonde.Client, timeout: float | None) -> Floats:
    edit = sonde.patch(sonde.residual(layer=2, position=[1, 2]), sonde.Prompt(IDS[::-1]))
    return client.intervene(IDS, [edit], targets=[41, 9], timeout=timeout).log_probabilities


def _read(client: sonde.Client, timeout: float | None) -> Floats:
    method = sonde.Activations(sonde.residual(layer=[0, 1]), sonde.site("attention_pattern", layers=0))
    return client.trace(IDS, method=method, timeout=timeout).activations["residual_post"]


QUESTIONS: Mapping[str, Question] = {
    "neurons of block 0": _neurons(0),
    "neurons of block 3": _neurons(3),
    "all neurons of two blocks": _long,
    "causal trace": _traced,
    "lens": _lens,
    "patch": _patched,
    "activations": _read,
}


def expected(client: sonde.Client) -> dict[str, Floats]:
    """The answers, one by one on a quiet server."""
    return {name: np.asarray(question(client, None)) for name, question in QUESTIONS.items()}


def is_right(answer: Floats, known: Floats) -> bool:
    """Whether an answer is the one that is known, up to rounding."""
    return answer.shape == known.shape and bool(np.allclose(answer, known, rtol=0, atol=TOLERANCE, equal_nan=True))


def wait_for(check: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Looks again and again: what was dropped takes a moment to be gone."""
    end = time.monotonic() + seconds
    while not (done := check()) and time.monotonic() < end:
        time.sleep(0.2)
    return done
