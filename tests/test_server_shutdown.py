"""Servers that are told to stop, or are killed, while somebody asks; and clients that try again."""

import signal
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import sonde
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.models import save_model
from tests.support.process import free_port, server_of

pytestmark = pytest.mark.system

PROMPT = [5, 130, 77, 301, 9, 260, 41] * 8
PLAN = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[0, 1])
"""Thousands of runs, over dozens of batches."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("shutdown") / "llama")


def in_mid_stream(client: sonde.Client, action: "list[float]", at: threading.Event) -> sonde.SondeError | None:
    """Runs the sweep; `at` is set once a part of it has come. Returns how it failed."""

    def progress(done: int, total: int) -> None:
        action.append(done / total)
        if done:
            at.set()

    try:
        client.intervene(PROMPT, PLAN, targets=[41], progress=progress)
    except sonde.SondeError as error:
        return error
    return None


class Asking(threading.Thread):
    """Asks for the sweep, and keeps how it ended."""

    def __init__(self, client: sonde.Client) -> None:
        super().__init__()
        self.client = client
        self.begun = threading.Event()
        self.progress: list[float] = []
        self.error: sonde.SondeError | None = None
        self.start()

    def run(self) -> None:
        self.error = in_mid_stream(self.client, self.progress, self.begun)
        self.begun.set()


def small(client: sonde.Client) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[2], positions=[-1])
    return client.intervene(PROMPT, plan, targets=[41]).log_probabilities


def patiently(client: sonde.Client) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """What a caller does who minds `retryable`."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return small(client)
        except sonde.SondeError as error:
            if not error.retryable:
                raise
    raise TimeoutError


def test_a_kill_in_mid_stream_is_an_error_to_try_again_after(model: Path) -> None:
    port = free_port()
    with sonde.Client(f"127.0.0.1:{port}", timeout=60) as client:
        with server_of(model, port) as process:
            client.wait_until_serving()
            before = small(client)
            asking = Asking(client)
            assert asking.begun.wait(60)
            assert asking.error is None
            process.kill()
            asking.join(30)
            assert isinstance(asking.error, sonde.NotServing)
            assert asking.error.retryable
            assert 0 < max(asking.progress) < 1
        with server_of(model, port):
            # Each call is four attempts; by themselves they reach a server that is back within seconds.
            np.testing.assert_array_equal(patiently(client), before)


def test_a_call_that_outlasts_the_grace_period_is_ended(model: Path) -> None:
    port = free_port()
    with server_of(model, port, "--grace", "0.2") as process, sonde.Client(f"127.0.0.1:{port}", timeout=60) as client:
        client.wait_until_serving()
        asking = Asking(client)
        assert asking.begun.wait(60)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 10
        asking.join(30)
        assert isinstance(asking.error, sonde.NotServing | sonde.Cancelled)
        assert 0 < max(asking.progress) < 1


def test_a_call_that_ends_within_the_grace_period_is_finished(model: Path) -> None:
    port = free_port()
    with server_of(model, port, "--grace", "60") as process, sonde.Client(f"127.0.0.1:{port}", timeout=60) as client:
        client.wait_until_serving()
        asking = Asking(client)
        assert asking.begun.wait(60)
        process.send_signal(signal.SIGTERM)
        process_ends = time.monotonic() + 60
        refused: sonde.SondeError | None = None
        while refused is None and time.monotonic() < process_ends:
            # Its time is longer than the server's: what comes just as the port is closed ends with the server.
            with sonde.Client(f"127.0.0.1:{port}", timeout=120) as another:
                try:
                    another.trace([5, 6])
                except sonde.NotServing as error:
                    refused = error
        assert refused is not None
        asking.join(60)
        assert asking.error is None
        assert max(asking.progress) == 1
        assert process.wait(30) == 0


def test_who_watches_health_does_not_hold_up_the_end(model: Path) -> None:
    port = free_port()
    with server_of(model, port, "--grace", "300") as process, sonde.Client(f"127.0.0.1:{port}", timeout=60) as client:
        client.wait_until_serving()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=300)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert process.wait(60) == 0
