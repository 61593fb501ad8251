"""Real faults, planted in a running server: it survives those that pass, and goes for those that do not."""

import math
import resource
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
import sonde
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import SERVICE, Server

from tests.support.models import save_model
from tests.support.process import ServerProcess, server_of, wait_for_line
from tests.support.tolerance import assert_close

ROOT = Path(__file__).parent.parent
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PROMPT = [5, 130, 77, 301, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("faults") / "llama")


@contextmanager
def planted(model: torch.nn.Module, fault: Callable[[], None]) -> Iterator[None]:
    """Has every module of the model do this before it computes."""
    handles = [module.register_forward_pre_hook(lambda *_: fault()) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20).status)


def values(client: sonde.Client) -> Any:
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[3], positions=[-1])
    return client.intervene(PROMPT, plan, targets=[41]).log_probabilities


@pytest.fixture
def serving(model: Path) -> Iterator[tuple[Server, sonde.Client, threading.Event]]:
    lost = threading.Event()
    with (
        Server(Settings(model=str(model), port=0, device="cpu", cache_bytes=0), on_failure=lost.set) as server,
        sonde.Client(server.address, timeout=60) as client,
    ):
        yield server, client, lost


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["device", "torch on the cpu", "python"],
)
def test_a_full_memory_is_a_matter_of_the_moment(serving: Any, error: Exception) -> None:
    server, client, lost = serving
    before = values(client)

    def full() -> None:
        raise error

    with planted(server.model, full), pytest.raises(sonde.Busy) as caught:
        values(client)
    assert (caught.value.reason, caught.value.retry_after) == ("OUT_OF_MEMORY", 2.0)
    assert caught.value.retryable
    assert (values(client) == before).all()
    assert (health(server.address), lost.is_set()) == (SERVING, False)


def test_what_does_not_fit_together_is_computed_in_parts(serving: Any) -> None:
    server, client, _ = serving
    before = values(client)
    allowed = 10
    refused = []

    def limited(_module: Any, inputs: Any) -> None:
        if inputs and inputs[0].numel() > allowed * 48:
            refused.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = server.model.model.layers[4].mlp.register_forward_pre_hook(limited)
    after = values(client)
    handle.remove()
    assert refused
    # Rows of another batch: the same up to the rounding of another order of sums.
    assert abs(after - before).max() < 1e-5


def test_an_unexpected_error_is_internal_and_the_server_serves_on(serving: Any) -> None:
    server, client, lost = serving
    before = values(client)
    once = iter([RuntimeError("CUDA error: a passing one, with a secret")])

    def stumble() -> None:
        for error in once:
            raise error

    with planted(server.model, stumble):
        with pytest.raises(sonde.InternalError) as caught:
            values(client)
        assert "secret" not in str(caught.value)
        assert caught.value.request_id
        assert not caught.value.retryable
        assert (values(client) == before).all()
    assert not lost.wait(0.5)
    assert health(server.address) == SERVING


def test_a_poisoned_device_takes_the_server_out(serving: Any) -> None:
    server, client, lost = serving

    def poisoned() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with planted(server.model, poisoned):
        with pytest.raises(sonde.InternalError):
            values(client)
        assert lost.wait(20)
    assert health(server.address) == NOT_SERVING
    with pytest.raises(sonde.NotServing) as caught:
        client.trace(PROMPT, timeout=5)
    assert caught.value.retryable
    assert "the server is shutting down" in str(caught.value)


# ------------------------------------------------------------------ processes

PLANTED = """
import resource, sys, torch
from sonde_server import cli
from sonde_server.serving import server

load = server.Server.load

def planted(self):
    load(self)
    {fault}

server.Server.load = planted
sys.exit(cli.main(sys.argv[1:]))
"""
POISON = """
    def poisoned(*_):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    armed = iter([False] * 40)
    for module in self.model.modules():
        module.register_forward_pre_hook(lambda *_: None if next(armed, True) is False else poisoned())
"""
SHORT_OF_MEMORY = """
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
"""


@contextmanager
def process(model: Path, fault: str, *flags: str) -> Iterator[tuple[ServerProcess, str]]:
    """A server of its own, with a fault planted once the model is loaded; and its address."""
    program = PLANTED.replace("    {fault}", textwrap.dedent(fault).replace("\n", "\n    "))
    with server_of(model, 0, *flags, program=("-c", program)) as ran:
        address = wait_for_line(ran, r"listening on (.*)")
        wait_for_line(ran, r"serving (.*)")
        yield ran, address


@pytest.mark.system
def test_a_process_with_a_poisoned_device_ends_with_an_error(model: Path) -> None:
    with process(model, POISON, "--cache-bytes", "0") as (ran, address):
        assert ran.stderr is not None
        with sonde.Client(address, timeout=30) as client, pytest.raises(sonde.InternalError):
            [client.trace(PROMPT) for _ in range(100)]
        assert ran.wait(30) == 1
        assert "the model no longer runs (AcceleratorError: CUDA error" in ran.stderr.read()


@pytest.mark.system
def test_an_allocator_that_really_fails_is_survived(model: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    unlimited = ("--max-queued-runs", "1" + "0" * 9, "--max-queued-bytes", "1" + "0" * 15)
    flags = ("--max-working-bytes", "0", "--max-runs", "0", "--workers", "8", "--cache-bytes", "0", *unlimited)
    with process(model, SHORT_OF_MEMORY, *flags) as (ran, address), sonde.Client(address, timeout=60) as client:
        before = values(client)
        method = sonde.CausalTracing(
            subject=[0, 1, 2], samples=2_000_000, components=["mlp_out"], layers=[0], positions=[0]
        )
        for _ in range(3):
            with pytest.raises(sonde.Busy) as caught:
                client.trace(PROMPT, method=method)
            assert caught.value.reason == "OUT_OF_MEMORY"
            assert (values(client) == before).all()
        ran.send_signal(signal.SIGTERM)
        assert ran.wait(30) == 0


def test_a_request_id_is_in_the_log_and_in_the_error(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, client, _ = serving
    caplog.set_level("INFO")
    with pytest.raises(sonde.InvalidRequest) as caught:
        client.trace([5, 10**6])
    assert caught.value.request_id
    assert f"{caught.value.request_id} Trace INVALID_ARGUMENT by ipv4:127.0.0.1" in caplog.text
    assert math.isfinite(float(caplog.text.rpartition(" in ")[2].split()[0]))


# ------------------------------------------------------------------ deadlines in each phase, and a full queue


class Gate:
    """Planted before every module: the model's thread waits there while it is shut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.passed = 0

    def __call__(self) -> None:
        if not self.open.is_set():
            self.reached.set()
            assert self.open.wait(60)
        self.passed += 1


@pytest.fixture
def gated(serving: Any) -> Iterator[tuple[Server, sonde.Client, Gate]]:
    server, client, _ = serving
    gate = Gate()
    with planted(server.model, gate):
        yield server, client, gate
        gate.open.set()


def in_background(work: Callable[[], Any]) -> "Future[Any]":
    """Runs it in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the one who waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_a_deadline_that_passes_while_it_runs_stops_it_before_the_next_block(gated: Any) -> None:
    _, client, gate = gated
    before = values(client)
    gate.open.clear()
    running = in_background(lambda: client.trace(PROMPT, timeout=0.5))
    assert gate.reached.wait(30)
    with pytest.raises(sonde.DeadlineExceeded):
        running.result(30)
    passed = gate.passed
    gate.open.set()
    # What is in the middle of a block finishes it: a few modules. Five blocks would be several times that.
    again = values(client)
    whole = gate.passed
    values(client)
    assert whole - passed < (gate.passed - whole) + 20
    assert (again == before).all()


def test_a_deadline_that_passes_in_the_queue_means_it_never_runs(gated: Any) -> None:
    server, client, gate = gated
    before = values(client)
    gate.open.clear()
    first = in_background(lambda: values(client))
    assert gate.reached.wait(30)
    work = server.scheduler.engine.work.token_layers
    with pytest.raises(sonde.DeadlineExceeded):
        client.trace([41, 42, 43], timeout=0.5)
    gate.open.set()
    assert (first.result(30) == before).all()
    # The first one's own five blocks of its five tokens, and its 80 runs of two; nothing of the three tokens.
    assert server.scheduler.engine.work.token_layers - work <= 25 + 160
    assert server.scheduler.statistics().waiting_runs == 0


def test_a_deadline_that_passes_while_it_is_sent_frees_its_place(model: Path) -> None:
    settings = Settings(model=str(model), port=0, device="cpu", workers=5)
    sites = [pb.Site(component=pb.COMPONENT_LOGITS)] * 600
    request = pb.TraceRequest(
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=PROMPT * 10)), activations=pb.Activations(sites=sites)
    )
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        stub = InspectionServiceStub(channel)
        slow = stub.Trace(request, timeout=1.5)
        next(slow)
        with sonde.Client(server.address, timeout=60) as client:
            # Room for one: everybody else is told to come back, and the reader does not read.
            with pytest.raises(sonde.Busy):
                client.trace(PROMPT)
            assert eventually(lambda: len(client.trace(PROMPT).tokens) == len(PROMPT))
        with pytest.raises(grpc.RpcError) as caught:
            list(slow)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def eventually(check: Callable[[], bool]) -> bool:
    """Tries again while the server is busy."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(sonde.Busy):
            return check()
    return False


def test_a_full_queue_turns_away_what_does_not_fit_and_answers_the_rest(model: Path) -> None:
    gate = Gate()
    settings = Settings(model=str(model), port=0, device="cpu", cache_bytes=0, max_queued_runs=3)
    with Server(settings) as server, sonde.Client(server.address, timeout=60) as client:
        before = client.trace(PROMPT, targets=[41]).prediction.probabilities
        with planted(server.model, gate):
            gate.open.clear()
            first = in_background(lambda: client.trace(PROMPT, targets=[41]))
            assert gate.reached.wait(30)
            asked = [in_background(lambda: client.trace(PROMPT, targets=[41])) for _ in range(12)]
            # Nothing moves on, so what is done is refused; the one under way is among the three that are let in.
            refused = [one.exception() for one in islice(as_completed(asked, timeout=30), 12 - 2)]
            gate.open.set()
            answers = [one.result(30) for one in [first, *asked] if one.exception(30) is None]
        assert len(refused) == 12 - 2
        for error in refused:
            assert isinstance(error, sonde.Busy)
            assert error.retry_after is not None
            assert error.retry_after > 0
        assert len(answers) == 3
        for answer in answers:
            assert_close(answer.prediction.probabilities, before)
        assert (client.trace(PROMPT, targets=[41]).prediction.probabilities == before).all()
