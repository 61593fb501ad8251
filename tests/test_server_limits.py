"""Every limit: what lies within is answered, what lies beyond is refused with both numbers, and others go on."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import sonde
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.errors import TooManyRuns
from sonde_server.serving.server import SERVICE, Server
from sonde_server.sharing.quota import BURST_SECONDS, RunQuota

from tests.support import wire
from tests.support.models import save_model

DEADLINE = 60.0
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("limits") / "gpt2")


@contextmanager
def serving(model: Path, **limits: Any) -> Iterator[tuple[Server, InspectionServiceStub]]:
    settings = Settings(model=str(model), port=0, device="cpu", **limits)
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        yield server, InspectionServiceStub(channel)


def traced(tokens: int = 3, **fields: Any) -> pb.TraceRequest:
    return pb.TraceRequest(prompt=wire.prompt([5 + i for i in range(tokens)]), **fields)


def swept(units: int, **fields: Any) -> pb.InterveneRequest:
    """A sweep of so many runs."""
    site = pb.Site(component=pb.COMPONENT_NEURON, layers=[1], units=range(units))
    sweep = pb.Sweep(edit=pb.Edit(site=site, scale=0.5), together=[pb.AXIS_POSITION])
    return pb.InterveneRequest(prompt=wire.prompt([5, 6, 7]), sweep=sweep, **fields)


def cased(cases: int) -> pb.TraceRequest:
    """A trace of so many cases."""
    return pb.TraceRequest(cases=[pb.Case(prompt=wire.prompt([5 + i, 6, 7])) for i in range(cases)])


def endless() -> pb.TraceRequest:
    """A trace whose answer does not fit in what a connection takes unread: the handler waits for its reader."""
    sites = [pb.Site(component=pb.COMPONENT_LOGITS)] * 600
    return pb.TraceRequest(prompt=wire.prompt([5, 6, 7] * 20), activations=pb.Activations(sites=sites))


def answered(stub: InspectionServiceStub) -> bool:
    answer = wire.join_trace(stub.Trace(traced(targets=[pb.Target(id=41)]), timeout=DEADLINE))
    return len(answer.context.clean.log_probabilities) == 1


def failure(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """How a call fails: its code, message, and details by kind."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    status = rpc_status.from_call(error)
    details = {}
    for packed in status.details if status else ():
        name = packed.TypeName().rpartition(".")[2]
        details[name] = getattr(error_details_pb2, name)()
        packed.Unpack(details[name])
    return error.code(), error.details(), details


# ------------------------------------------------------------------ what can never fit


@pytest.mark.parametrize(
    ("limits", "within", "beyond", "numbers"),
    [
        ({"max_prompt_tokens": 7}, traced(7), traced(8), (8, 7)),
        ({"max_runs": 5}, swept(5), swept(6), (6, 5)),
        (
            {"max_runs": 3},
            swept(1, sources=[wire.prompt([5])] * 3),
            swept(1, sources=[wire.prompt([5])] * 4),
            (4, 3),
        ),
        (
            {"max_total_tokens": 9},
            swept(1, sources=[wire.prompt([5] * 6)]),
            swept(1, sources=[wire.prompt([5] * 7)]),
            (10, 9),
        ),
        ({"max_cases": 2}, cased(2), cased(3), (3, 2)),
        ({"max_answer_bytes": 1000}, swept(50), swept(150), (None, 1000)),
        ({"max_working_bytes": 25_000}, traced(5), traced(8), (None, 25_000)),
        ({"max_request_bytes": 1024}, traced(targets=[pb.Target(id=1)] * 200), traced(60), (None, 1024)),
    ],
    ids=["prompt", "runs", "sources", "tokens", "cases", "answer", "memory", "request"],
)
def test_what_can_never_fit_is_refused_with_both_numbers(
    model: Path, limits: dict[str, Any], within: Any, beyond: Any, numbers: tuple[int | None, int]
) -> None:
    if "max_request_bytes" in limits:
        text = "a b " * 20
        within = traced(targets=[pb.Target(id=1)] * 200)
        beyond = traced(targets=[pb.Target(id=1, contrast_text=text)] * 20)
        assert within.ByteSize() <= 1024 < beyond.ByteSize() <= 2048
    with serving(model, **limits) as (_, stub):

        def ask(request: Any) -> Any:
            method = stub.Trace if isinstance(request, pb.TraceRequest) else stub.Intervene
            return method(request, timeout=DEADLINE)

        assert list(ask(within))
        code, message, details = failure(ask(beyond))
        assert code is INVALID
        assert details["ErrorInfo"].reason == "INVALID_REQUEST"
        asked, allowed = numbers
        assert re.search(rf"\b{allowed}\b", message)
        assert re.search(rf"\b{asked}\b" if asked is not None else r"\b\d{4,}\b", message)
        assert answered(stub)


def test_a_message_that_is_much_too_large_is_not_even_taken(model: Path) -> None:
    with serving(model, max_request_bytes=1024) as (server, stub):
        code, message, _ = failure(stub.Trace(traced(targets=[pb.Target(id=1)] * 2000), timeout=DEADLINE))
        assert code is EXHAUSTED
        assert "2048" in message
        with sonde.Client(server.address) as client, pytest.raises(sonde.InvalidRequest):
            client.trace([5, 6, 7], targets=[1] * 2000)
        assert answered(stub)


def test_a_text_that_cannot_fit_is_not_even_cut_into_tokens(model: Path) -> None:
    with serving(model, max_prompt_tokens=10) as (server, stub):
        longest = server._loaded.vocabulary.longest  # type: ignore[union-attr]
        code, message, _ = failure(stub.Trace(pb.TraceRequest(prompt=wire.prompt("a" * (10 * longest + 1)))))
        assert code is INVALID
        assert message.endswith(f"got {10 * longest + 1}")
        began = time.monotonic()
        huge = pb.TraceRequest(prompt=wire.prompt("a"), targets=[pb.Target(text="ab" * 10_000_000)])
        code, message, _ = failure(stub.Trace(huge, timeout=DEADLINE))
        assert (code, "20000000" in message) == (INVALID, True)
        assert time.monotonic() - began < 10
        assert answered(stub)


MANY = 3_000_000
FEWER = MANY // 10
SITE = {"component": pb.COMPONENT_MLP_OUT}
EDIT = pb.Edit(site=pb.Site(**SITE, layers=[1]), scale=0.5)  # type: ignore[arg-type]


def listed(*edits: pb.Edit, **fields: Any) -> pb.InterveneRequest:
    plan = pb.InterventionList(interventions=[pb.Intervention(edits=edits)])
    return pb.InterveneRequest(prompt=wire.prompt([5, 6, 7]), list=plan, **fields)


def at(**places: Any) -> pb.InterveneRequest:
    return listed(pb.Edit(site=pb.Site(**{**SITE, "layers": [1], **places}), scale=0.5))


def patched(**fields: Any) -> pb.InterveneRequest:
    return listed(pb.Edit(site=EDIT.site, patch=pb.Patch(**fields)), sources=[wire.prompt([5, 6, 7])])


def with_tensor(**fields: Any) -> pb.InterveneRequest:
    return listed(pb.Edit(site=EDIT.site, set=pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, data=bytes(4), **fields)))


# Requests of megabytes that would take long to be looked through entry by entry.
HUGE: dict[str, Callable[[], Any]] = {
    "token ids": lambda: pb.TraceRequest(prompt=wire.prompt([5] * MANY)),
    "layers": lambda: at(layers=[1] * MANY),
    "units": lambda: at(units=[1] * MANY),
    "positions": lambda: at(positions=[1] * MANY),
    "sources": lambda: patched(sources=[0] * MANY),
    "source positions": lambda: patched(sources=[0], source_positions=[0] * MANY),
    "axes": lambda: pb.InterveneRequest(prompt=wire.prompt([5]), sweep=pb.Sweep(edit=EDIT, together=[1] * MANY)),
    "components": lambda: traced(causal_tracing=pb.CausalTracing(components=[1] * MANY)),
    "sites": lambda: traced(activations=pb.Activations(sites=[pb.Site(**SITE)] * FEWER)),  # type: ignore[arg-type]
    "edits": lambda: listed(*[EDIT] * FEWER),
    "interventions": lambda: pb.InterveneRequest(
        prompt=wire.prompt([5]), list=pb.InterventionList(interventions=[pb.Intervention(edits=[EDIT])] * FEWER)
    ),
    "prompts": lambda: listed(EDIT, sources=[wire.prompt([5])] * FEWER),
    "targets": lambda: traced(targets=[pb.Target(id=1)] * FEWER),
    "shape": lambda: with_tensor(shape=[1] * MANY),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_lists_are_refused_without_being_looked_through(hosts: Any, name: str) -> None:
    request = HUGE[name]()
    stub = hosts["gpt2"].stub
    began = time.monotonic()
    code, message, _ = failure((stub.Trace if isinstance(request, pb.TraceRequest) else stub.Intervene)(request))
    assert (code, bool(re.search(r"\d", message))) == (INVALID, True)
    # Looked through one by one they take tens of seconds.
    assert time.monotonic() - began < 5


def test_what_a_question_may_hold_is_never_less_than_what_the_engine_keeps(hosts: Any) -> None:
    from sonde_server.engine import Base
    from sonde_server.questions.costs import state_bytes
    from sonde_server.sharing.driving import complete

    for family in ("gpt2", "llama"):
        server = hosts[family].server
        session = server.scheduler.session(caller="test", cancelled=threading.Event())
        for tokens in (1, 9, 33):
            (state,) = complete(session.states([Base(tuple(range(5, 5 + tokens)))]), session)
            described = server._loaded.description
            assert state.bytes <= state_bytes(tokens, described) <= 2 * state.bytes


MEMORY = {
    "samples": traced(
        causal_tracing=pb.CausalTracing(
            gaussian=pb.CausalTracing.Gaussian(samples=90_000),
            subject_positions=pb.PositionList(positions=[0]),
            positions=[0],
            layers=[0],
            components=[pb.COMPONENT_MLP_OUT],
        )
    ),
    "targets": traced(token_probability=pb.TokenProbability(), targets=[pb.Target(id=1)] * 4000),
    "sources": swept(1, sources=[wire.prompt([5 + i % 90, *range(5, 65)]) for i in range(90)]),
}


@pytest.mark.parametrize("name", list(MEMORY))
def test_memory_is_counted_before_it_is_taken(model: Path, name: str) -> None:
    request = MEMORY[name]
    with serving(model, max_working_bytes=5_000_000) as (_, stub):
        code, message, _ = failure(
            (stub.Trace if isinstance(request, pb.TraceRequest) else stub.Intervene)(request, timeout=DEADLINE)
        )
        assert (code, "5000000" in message) == (INVALID, True)
        assert answered(stub)


# ------------------------------------------------------------------ what does not fit now


def test_a_caller_has_so_many_requests_at_once(model: Path) -> None:
    with serving(model, max_requests=2) as (_, stub):
        held = [stub.Trace(endless(), timeout=DEADLINE) for _ in range(2)]
        assert all(next(call).HasField("context") for call in held)
        code, message, details = failure(stub.Trace(traced(), timeout=DEADLINE))
        assert code is EXHAUSTED
        assert dict(details["ErrorInfo"].metadata) == {"asked": "3", "allowed": "2"}
        assert details["ErrorInfo"].reason == "TOO_MANY_REQUESTS"
        assert details["RetryInfo"].retry_delay.seconds == 1
        assert "ipv4:127.0.0.1 is at the limit of 2" in message
        assert stub.GetModel(pb.GetModelRequest(), timeout=DEADLINE).parameters
        for call in held:
            call.cancel()
        assert eventually(lambda: answered(stub))


def eventually(check: Any, seconds: float = 30.0) -> bool:
    """Tries again while the server is busy: what was cancelled takes a moment to end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return bool(check())
        except grpc.RpcError as error:
            if error.code() is not EXHAUSTED:
                raise
    return False


def test_slow_readers_leave_threads_for_others_and_for_health(model: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with serving(model, workers=6, max_requests=0) as (server, stub):
        held = [stub.Trace(endless(), timeout=DEADLINE) for _ in range(2)]
        assert all(next(call).HasField("context") for call in held)
        code, message, details = failure(stub.Trace(traced(), timeout=DEADLINE))
        assert (code, details["ErrorInfo"].reason) == (EXHAUSTED, "TOO_MANY_REQUESTS")
        assert "limit of 2 concurrent" in message
        with grpc.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20).status == 1
        for call in held:
            call.cancel()
        assert eventually(lambda: answered(stub))


def test_a_request_ends_at_the_servers_own_deadline(model: Path) -> None:
    # Room for one call at a time.
    with serving(model, max_seconds=0.5, workers=5) as (_, stub):
        sweep = pb.Sweep(edit=pb.Edit(site=pb.Site(component=pb.COMPONENT_NEURON), scale=0.0))
        long = pb.InterveneRequest(prompt=wire.prompt([5, 6, 7] * 20), sweep=sweep)
        code, _, details = failure(stub.Intervene(long, timeout=DEADLINE))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        slow = stub.Trace(endless())
        next(slow)
        assert failure(stub.Trace(traced(), timeout=DEADLINE))[0] is EXHAUSTED
        # Nobody reads on: at the deadline the answer stops all the same, and its place is free.
        assert eventually(lambda: answered(stub))
        assert failure(slow)[0] in {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_what_takes_long_to_read_is_not_read_to_its_end(model: Path) -> None:
    """A small request: as many cases as are allowed, each of which has every entry of a list at every position."""
    ids = [5] * 60
    named = [pb.NamedPositions()] * 1024
    long = pb.TraceRequest(
        cases=[pb.Case(prompt=wire.prompt(ids)) for _ in range(3000)],
        activations=pb.Activations(sites=[pb.Site(component=pb.COMPONENT_NEURON, named_positions=named)] * 100),
    )
    # Room for one call at a time: its place is free once nobody reads any more.
    with serving(model, workers=5) as (_, stub):
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Trace(long, timeout=1.0))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert eventually(lambda: answered(stub))
    with serving(model, workers=5, max_seconds=0.5) as (_, stub):
        code, _, details = failure(stub.Trace(long, timeout=DEADLINE))
        assert (code, details["ErrorInfo"].reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert answered(stub)


def test_a_request_that_never_comes_is_not_waited_for(model: Path) -> None:
    with serving(model, max_seconds=0.5, workers=5) as (server, stub), grpc.insecure_channel(server.address) as channel:
        over = threading.Event()

        def nothing() -> Iterator[bytes]:
            over.wait(DEADLINE)
            yield from ()

        call: Any = channel.stream_stream(f"/{SERVICE}/Trace")(nothing())
        with pytest.raises(grpc.RpcError):
            next(call)
        over.set()
        assert eventually(lambda: answered(stub))


def test_runs_a_second_are_counted_by_caller(model: Path) -> None:
    with serving(model, max_runs_per_second=10) as (_, stub):
        # A full bucket holds 100 runs; 170 leave it in debt.
        assert list(stub.Intervene(swept(170), timeout=DEADLINE))
        dry = swept(170)
        dry.dry_run = True
        assert list(stub.Intervene(dry, timeout=DEADLINE))
        code, message, details = failure(stub.Intervene(swept(5), timeout=DEADLINE))
        assert code is EXHAUSTED
        assert details["ErrorInfo"].reason == "TOO_MANY_RUNS"
        assert dict(details["ErrorInfo"].metadata) == {"asked": "5", "allowed": "10"}
        assert 3 <= details["RetryInfo"].retry_delay.seconds <= 7
        assert "10 runs per second" in message


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 500)), max_size=30))
def test_no_caller_takes_more_than_its_rate_in_the_long_run(asks: list[tuple[float, int]]) -> None:
    now, taken, largest = 0.0, 0, 0
    quota = RunQuota(7.0, lambda: now)
    for pause, runs in asks:
        now += pause
        largest = max(largest, runs)
        try:
            quota.take("alice", runs)
        except TooManyRuns as error:
            before = now
            now += error.retry_after + 1e-6
            quota.take("alice", runs)
            now = max(now, before)
        taken += runs
        # What a full bucket holds, what has flowed since, and the one request that may overdraw it.
        assert taken <= 7.0 * (BURST_SECONDS + now) + largest + 1e-6
    quota.take("bob", 1)


def test_every_limit_is_a_setting_with_a_default_and_a_help_text() -> None:
    names = {field.name: field for field in dataclasses.fields(Settings)}
    for name in (
        "max_request_bytes", "max_prompt_tokens", "max_runs", "max_answer_bytes", "max_working_bytes", "max_requests",
        "max_runs_per_second", "max_seconds", "max_queued_runs",
    ):  # fmt: skip
        assert names[name].default is not dataclasses.MISSING
        assert names[name].metadata["help"]
    assert np.isfinite(Settings().max_seconds)
