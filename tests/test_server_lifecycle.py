"""A server listens before it can answer, says so, and goes without dropping what is in progress."""

import re
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Settings
from sonde_server.serving.server import SERVICE, Server

from tests.support import wire
from tests.support.models import save_model
from tests.support.process import server_of, wait_for_line

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("lifecycle") / "llama")


def health_stub(channel: grpc.Channel) -> Any:
    """Untyped: the package's stubs know none of its methods."""
    return health_pb2_grpc.HealthStub(channel)


def health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(health_stub(channel).Check(request, timeout=20).status)


def test_health_follows_the_model(model: Path) -> None:
    server = Server(Settings(model=str(model), port=0, device="cpu"))
    try:
        server.listen()
        with grpc.insecure_channel(server.address) as channel:
            assert [health(channel, service) for service in ("", SERVICE)] == [NOT_SERVING, NOT_SERVING]
            with pytest.raises(grpc.RpcError) as caught:
                InspectionServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the model is still loading"
            server.load()
            assert [health(channel, service) for service in ("", SERVICE)] == [SERVING, SERVING]
            watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
            assert next(watch).status == SERVING
            server.stop(5)
            assert next(watch).status == NOT_SERVING
    finally:
        server.stop(0)


@pytest.mark.parametrize("reflected", [True, False])
def test_reflection_lists_the_service_where_it_is_wanted(model: Path, reflected: bool) -> None:
    settings = Settings(model=str(model), port=0, device="cpu", reflection=reflected)
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        if reflected:
            assert SERVICE in database.get_services()
        else:
            with pytest.raises(grpc.RpcError) as caught:
                database.get_services()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_in_progress_ends_before_the_server_does(model: Path) -> None:
    with Server(Settings(model=str(model), port=0, device="cpu")) as server:
        with grpc.insecure_channel(server.address) as channel:
            # The window of an HTTP/2 stream holds less than this answer: the handler waits for its reader.
            sites = [pb.Site(component=pb.COMPONENT_LOGITS)] * 24
            prompt = wire.prompt([5, 6, 7] * 20)
            request = pb.TraceRequest(prompt=prompt, activations=pb.Activations(sites=sites))
            stream = InspectionServiceStub(channel).Trace(request, timeout=60)
            first = next(stream)
            stopped = server._grpc.stop(30)
            rest = list(stream)
            assert stopped.wait(30)
        answer = wire.join_trace([first, *rest])
        assert {site for _, site, _ in answer.activations} == set(range(len(sites)))


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(model: Path, number: signal.Signals) -> None:
    with server_of(model) as process:
        address = wait_for_line(process, r"listening on (127\.0\.0\.1:\d+)")
        wait_for_line(process, r"serving (.*) \(llama, .*")
        with grpc.insecure_channel(address) as channel:
            assert InspectionServiceStub(channel).GetModel(pb.GetModelRequest(), timeout=20).architecture == "llama"
        process.send_signal(number)
        assert process.wait(30) == 0


@pytest.mark.system
def test_a_signal_while_the_model_loads_ends_it_too(model: Path) -> None:
    with server_of(model) as process:
        wait_for_line(process, r"listening on (.*)")
        assert wait_for_line(process, r"loading (.*)") == str(model)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.system
def test_what_keeps_it_from_serving_is_said_in_one_line(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with server_of(tmp_path) as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert re.fullmatch(
            rf"listening on .*\nloading {re.escape(str(tmp_path))}\nsonde-server: .*bert.*\n", process.stderr.read()
        )
    with Server(Settings(model=str(model), port=0, device="cpu")) as server:
        port = int(server.address.rpartition(":")[2])
        with server_of(model, port) as process:
            assert process.wait(60) == 1
            assert process.stderr is not None
            assert re.search(rf"^sonde-server: cannot listen on .*:{port}: .*$", process.stderr.read(), re.MULTILINE)


def test_callers_are_told_the_name_of_a_directory_and_not_its_path(model: Path) -> None:
    with Server(Settings(model=str(model), port=0, device="cpu")) as server, grpc.insecure_channel(server.address) as c:
        stub = InspectionServiceStub(c)
        told = stub.GetModel(pb.GetModelRequest(), timeout=20)
        (answer,) = stub.Trace(pb.TraceRequest(prompt=wire.prompt([3, 4])), timeout=20)
    assert told.provenance.model == answer.context.provenance.model == "llama"
    assert str(model.parent).encode() not in told.SerializeToString() + answer.SerializeToString()
