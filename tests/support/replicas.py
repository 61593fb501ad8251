"""Replicas of a server in processes of their own, and callers who ask them all the time."""

import asyncio
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sonde
from sonde_server.serving.server import Server

from tests.support.process import ServerProcess, server_of

SECONDS = 60.0
TOLERANCE = 1e-5
"""Answers share their batches with others, and float32 sums then come in another order."""
IDS = [5, 130, 77, 301, 9, 260, 41]
SMALL = sonde.sweep(sonde.scale(sonde.head(), 0.0), layers=[2], positions=[-1])
LONG = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[0, 1])
"""Thousands of runs, over dozens of batches, with the prompt eight times as long."""
MANY = 1000
PAUSE = 0.03
"""Between two questions of one caller, so that a server that starts gets its share of the machine."""
KINDS = ("sync", "async")


def wait_for(check: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Looks again and again until it is so."""
    end = time.monotonic() + seconds
    while not (done := check()) and time.monotonic() < end:
        time.sleep(0.01)
    return done


def served(server: Server) -> int:
    """How many calls have reached the server's service, refused ones too."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return int(sum(map(float, re.findall(r"^sonde_requests_total\{[^}]*\} (\S+)$", text, re.MULTILINE))))


class Replica:
    """A server on a port; its log is read all along."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.address = ""
        self.calls = 0
        self.sweeps = 0
        """Those of the calls that asked for thousands of runs."""
        self._serving = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._serving.wait(SECONDS), "the server does not serve"
        assert self.address, "the server has ended"

    def _read(self) -> None:
        for line in self.process.stderr or ():
            call = re.search(r" by .* (\d+) runs$", line)
            self.calls += call is not None
            self.sweeps += call is not None and int(call[1]) >= MANY
            if line.startswith("listening on "):
                self.address = line.split()[-1]
            if line.startswith("serving "):
                self._serving.set()
        self._serving.set()

    def kill(self) -> None:
        """As a machine does that loses its power."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def end(self) -> None:
        """In any case."""
        self.kill()
        self._reader.join(SECONDS)


@contextmanager
def replica(model: Path, port: int = 0, *flags: str) -> Iterator[Replica]:
    """A server that serves, killed in the end if it still runs."""
    with server_of(model, port, *flags) as process:
        started = Replica(process)
        try:
            yield started
        finally:
            started.end()


class Asking(threading.Thread):
    """Asks the addresses all the time until it is closed, from a few threads or tasks that share one client."""

    def __init__(self, kind: str, addresses: str | Sequence[str], callers: int = 4) -> None:
        super().__init__()
        self.right = 0
        self.wrong: list[npt.NDArray[Any]] = []
        self.errors: list[sonde.SondeError] = []
        self.slowest = 0.0
        self._kind, self._addresses, self._callers = kind, addresses, callers
        self._known: npt.NDArray[Any] | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        if self._kind == "async":
            asyncio.run(self._ask_in_tasks())
            return
        with sonde.Client(self._addresses, timeout=SECONDS) as client:
            threads = [threading.Thread(target=self._ask, args=(client,)) for _ in range(self._callers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _ask(self, client: sonde.Client) -> None:
        while not self._over.wait(PAUSE):
            began = time.monotonic()
            try:
                self._take(client.intervene(IDS, SMALL, targets=[41]).log_probabilities, began)
            except sonde.SondeError as error:
                self.errors.append(error)

    async def _ask_in_tasks(self) -> None:
        async with sonde.AsyncClient(self._addresses, timeout=SECONDS) as client:

            async def ask() -> None:
                while not self._over.is_set():
                    await asyncio.sleep(PAUSE)
                    began = time.monotonic()
                    try:
                        result = await client.intervene(IDS, SMALL, targets=[41])
                        self._take(result.log_probabilities, began)
                    except sonde.SondeError as error:
                        self.errors.append(error)

            await asyncio.gather(*(ask() for _ in range(self._callers)))

    def _take(self, answer: npt.NDArray[Any], began: float) -> None:
        with self._lock:
            self.slowest = max(self.slowest, time.monotonic() - began)
            if self._known is None:
                self._known = answer
            if np.allclose(answer, self._known, rtol=0, atol=TOLERANCE):
                self.right += 1
            else:
                self.wrong.append(answer)

    def goes_on(self, answers: int = 20) -> bool:
        """Whether so many more answers come."""
        before = self.right
        return wait_for(lambda: self.right >= before + answers)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(SECONDS)


class Sweeps(threading.Thread):
    """Asks for long sweeps at once by one client; keeps how far each came and how it ended."""

    def __init__(self, kind: str, replicas: Sequence[Replica], count: int) -> None:
        super().__init__()
        self.progress = [0.0] * count
        self.errors: list[sonde.SondeError | None] = [None] * count
        self._kind, self._replicas, self._count = kind, replicas, count
        self._calls = [one.calls for one in replicas]

    @property
    def _reached(self) -> bool:
        """Whether the client is connected to all of them: until then, others get their share."""
        return all(one.calls > calls for one, calls in zip(self._replicas, self._calls, strict=True))

    @property
    def under_way(self) -> bool:
        """Whether a part of each has come; the rest takes seconds."""
        return all(self.progress)

    def run(self) -> None:
        addresses = [one.address for one in self._replicas]
        if self._kind == "async":
            asyncio.run(self._sweep_in_tasks(addresses))
            return
        with sonde.Client(addresses, timeout=SECONDS) as client:
            while not self._reached:
                client.trace(IDS)
            threads = [threading.Thread(target=self._sweep, args=(client, number)) for number in range(self._count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _watch(self, number: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self.progress[number] = done / total

        return progress

    def _sweep(self, client: sonde.Client, number: int) -> None:
        try:
            client.intervene(IDS * 8, LONG, targets=[41], progress=self._watch(number))
        except sonde.SondeError as error:
            self.errors[number] = error

    async def _sweep_in_tasks(self, addresses: Sequence[str]) -> None:
        async with sonde.AsyncClient(addresses, timeout=SECONDS) as client:
            while not self._reached:
                await client.trace(IDS)

            async def sweep(number: int) -> None:
                try:
                    await client.intervene(IDS * 8, LONG, targets=[41], progress=self._watch(number))
                except sonde.SondeError as error:
                    self.errors[number] = error

            await asyncio.gather(*map(sweep, range(self._count)))
