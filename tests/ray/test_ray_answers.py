"""Behind Ray's proxies everything that is asked is answered as by a server alone, and refused in the same words."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import sonde
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.conformance.conftest import SyncAsker
from tests.conformance.test_same_answers import QUESTIONS, outcome
from tests.ray.conftest import Cluster
from tests.support.same import assert_same

pytestmark = pytest.mark.ray

IDS = list(range(5, 45))


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> Iterator[SyncAsker]:
    """The same model, served without Ray."""
    settings = Settings(
        model=str(cluster.model), port=0, device="cpu", dtype="float32", max_request_bytes=1 << 20, max_requests=3
    )
    with Server(settings) as server, sonde.Client(server.address) as client:
        yield SyncAsker(client)


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_answer_is_that_of_a_server_alone(client: sonde.Client, alone: SyncAsker, name: str) -> None:
    assert_same(outcome(SyncAsker(client), QUESTIONS[name]), outcome(alone, QUESTIONS[name]))


def test_the_model_is_described(client: sonde.Client, alone: SyncAsker) -> None:
    assert_same(client.model, alone.model())


def test_a_sweep_comes_in_parts(client: sonde.Client, alone: SyncAsker) -> None:
    given = (IDS, sonde.sweep(sonde.scale(sonde.neuron(), 0.0), positions=range(12)))
    parts = SyncAsker(client).stream("stream_intervene", *given, top_k=20)
    assert len(parts) > 1
    assert_same(parts[-1], alone.ask("intervene", *given, top_k=20))


@pytest.mark.asyncio
async def test_an_asyncio_client_is_answered(cluster: Cluster) -> None:
    async with sonde.AsyncClient(cluster.address, token=cluster.tokens["alice"]) as client:
        assert (await client.trace(IDS)).tokens
        with pytest.raises(sonde.InvalidRequest) as caught:
            await client.trace([10**6])
    assert caught.value.violations


# ---------------------------------------------------------------------- what the proxies are asked on the wire


@pytest.fixture
def channel(cluster: Cluster) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(cluster.address) as channel:
        yield channel


def raw(channel: grpc.Channel, cluster: Cluster, method: str, request: bytes) -> Any:
    """The error of a call with these bytes."""
    ask = channel.unary_stream(f"/sonde.v1.InspectionService/{method}", lambda sent: sent, lambda answer: answer)
    with pytest.raises(grpc.RpcError) as caught:
        list(ask(request, timeout=60, metadata=[("authorization", f"Bearer {cluster.tokens['alice']}")]))
    return caught.value


def reason(error: Any) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    return str(info.reason)


@pytest.mark.parametrize("method", ["GetModel", "Trace", "Intervene"])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, cluster: Cluster, method: str) -> None:
    error = raw(channel, cluster, method, b"\xff\xff\xff")
    assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


def test_too_large_a_request_is_refused_with_the_numbers(channel: grpc.Channel, cluster: Cluster) -> None:
    error = raw(channel, cluster, "Trace", b"\0" * ((1 << 20) + 1))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {1 << 20} bytes, got {(1 << 20) + 1}" in error.details()


def test_much_too_large_a_request_is_refused(channel: grpc.Channel, cluster: Cluster) -> None:
    error = raw(channel, cluster, "Trace", b"\0" * (5 << 20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(error) == "INVALID_REQUEST"


def test_health_tells_of_the_model(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", "sonde.v1.InspectionService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="another"), timeout=60)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_of_the_contract(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"sonde.v1.InspectionService", "grpc.health.v1.Health"} <= set(services)


# ---------------------------------------------------------------------- guards


def test_nobody_comes_in_without_a_token(cluster: Cluster) -> None:
    for token in (None, "sonde_" + "0" * 40):
        with cluster.client(token=token) as client:
            for ask in (lambda client=client: client.model, lambda client=client: client.trace(IDS)):
                with pytest.raises(sonde.Unauthenticated) as caught:
                    ask()
                assert caught.value.reason == "UNAUTHENTICATED"
                assert caught.value.request_id
