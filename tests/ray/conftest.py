"""Two replicas on a real Ray, in a network namespace of their own: Ray listens on every interface that it finds."""

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import sonde
from sonde_server.serving.tokens import make_token

from tests.support.models import save_model

ROOT = Path(__file__).parents[2]
PORT, FIRST_METRICS, REPLICAS = 50051, 9464, 2
MOST = 3
"""Requests that a caller may have in progress at each replica."""
CALLERS = ("alice", "bob")
METRICS = range(FIRST_METRICS, FIRST_METRICS + 2 * REPLICAS)
STARTING, SECONDS = 240.0, 60.0
"""Ray starts a dozen processes, which takes 12 seconds on an idle machine and a minute on a busy one."""


def wait_for(check: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `check` gives as soon as it is something."""
    end = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def namespace(stack: ExitStack) -> str:
    """A network namespace with nothing but its own loopback."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (Debian: apt-get install iproute2) to make a network namespace with")
    name = f"sonde-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made: {made.stderr.strip()}")
    stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
    inside(name, "ip", "link", "set", "lo", "up").wait()
    return name


def inside(name: str, *command: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(["ip", "netns", "exec", name, *command], text=True, **options)


@dataclass(frozen=True)
class Cluster:
    """What runs, and how it is asked."""

    model: Path
    sockets: Path
    tokens: dict[str, str]
    namespace: str
    process: "subprocess.Popen[str]"
    log: Path

    @property
    def address(self) -> str:
        return f"unix:{self.sockets / str(PORT)}"

    def client(self, caller: str = CALLERS[0], **options: Any) -> sonde.Client:
        return sonde.Client(self.address, **({"token": self.tokens[caller], "timeout": SECONDS} | options))

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold the model."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for one in below:
            try:
                named = " ".join(one.cmdline())
            except psutil.Error:
                continue
            if named.startswith("ray::ServeReplica:"):
                found.append(one)
        return found

    def metrics(self) -> dict[int, dict[str, float]]:
        """What every replica tells Prometheus, by its port; labels are left out, and their values added."""
        return {port: numbers for port in METRICS if (numbers := self._scrape(port))}

    def _scrape(self, port: int) -> dict[str, float]:
        connection = http.client.HTTPConnection("localhost", timeout=SECONDS)
        try:
            with socket.socket(socket.AF_UNIX) as connection.sock:
                connection.sock.connect(str(self.sockets / str(port)))
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return {}
        numbers: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("sonde_"):
                name, _, value = line.rpartition(" ")
                key = name.partition("{")[0]
                numbers[key] = numbers.get(key, 0.0) + float(value)
        return numbers

    def idle(self) -> bool:
        """Whether no replica has anything left to do, now or soon."""

        def rests() -> bool:
            told = self.metrics().values()
            # A replica that was never asked tells of no requests.
            left = [one["sonde_waiting_runs"] + one.get("sonde_requests_in_progress", 0.0) for one in told]
            return len(left) == REPLICAS and not any(left)

        return bool(wait_for(rests))

    def whole(self) -> bool:
        """Whether all replicas serve."""
        return bool(wait_for(lambda: len(self.replicas()) == len(self.metrics()) == REPLICAS, STARTING))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install '.[ray]'")
    directory = tmp_path_factory.mktemp("ray")
    made = {name: make_token(name) for name in CALLERS}
    tokens = directory / "tokens.txt"
    tokens.write_text("".join(line + "\n" for _, line in made.values()), encoding="utf-8")
    model = save_model("llama", directory / "llama")
    with ExitStack() as stack:
        space = namespace(stack)
        # The path of a socket must be short.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sonde")))
        forwarded = [f"{sockets / str(port)}={port}" for port in (PORT, *METRICS)]
        forwarder = inside(space, sys.executable, str(Path(__file__).with_name("forward.py")), *forwarded)
        stack.callback(stop, forwarder)
        log = directory / "log.txt"
        output = stack.enter_context(log.open("w", encoding="utf-8"))
        flags = {
            "model": model, "device": "cpu", "dtype": "float32", "tokens": tokens, "replicas": REPLICAS, "port": PORT,
            "metrics-port": FIRST_METRICS, "max-requests": MOST, "max-request-bytes": 1 << 20, "cpus-per-replica": 0.5,
        }  # fmt: skip
        arguments = [f"--{key}={value}" for key, value in flags.items()]
        process = inside(
            space, sys.executable, "-m", "sonde_server.cli", "ray", *arguments,
            stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {
                "PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(ROOT / "server")]),
                # Ray's workers give way to all others; on a machine with other work they would hardly run.
                "RAY_worker_niceness": "0",
            },
        )  # fmt: skip
        stack.callback(stop, process)
        found = Cluster(model, sockets, {name: token for name, (token, _) in made.items()}, space, process, log)
        ready = wait_for(lambda: process.poll() is not None or " on Ray, at port" in log.read_text("utf-8"), STARTING)
        assert ready, log.read_text("utf-8")
        assert process.poll() is None, log.read_text("utf-8")
        with found.client() as client:
            client.wait_until_serving(SECONDS)
        yield found


def stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[sonde.Client]:
    assert cluster.whole()
    with cluster.client() as client:
        yield client
