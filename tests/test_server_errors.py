"""Every kind of error has a status with details, also one that comes while an answer streams."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import (
    InspectionServiceServicer,
    InspectionServiceStub,
    add_InspectionServiceServicer_to_server,
)
from sonde_server import errors
from sonde_server.serving.guards import ErrorGuard
from sonde_server.serving.guards.catalogue import CATALOGUE, ENTRIES
from sonde_server.serving.guards.errors import status_of

METADATA_LIMIT = 8192
"""Bytes of headers and trailers that a client takes by default."""


class Failing(InspectionServiceServicer):
    """Raises what it was given, in a stream after `sent` messages."""

    def __init__(self, error: Exception | None, sent: int) -> None:
        self.error = error
        self.sent = sent

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> pb.GetModelResponse:  # noqa: ARG002, N802
        if self.error is None:
            context.abort(grpc.StatusCode.DATA_LOSS, "on purpose")
        raise self.error

    def Trace(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.TraceResponse]:  # noqa: N802
        for _ in range(self.sent):
            yield pb.TraceResponse()
        self.GetModel(request, context)

    def Intervene(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.InterveneResponse]:  # noqa: N802
        raise NotImplementedError


@contextmanager
def failing(error: Exception | None, sent: int = 0) -> Iterator[InspectionServiceStub]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[ErrorGuard("/sonde.v1.InspectionService/")])
        add_InspectionServiceServicer_to_server(Failing(error, sent), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield InspectionServiceStub(channel)
        finally:
            server.stop(0).wait()


def status_in(error: Any) -> status_pb2.Status:
    """The status that a failed call brought."""
    status = rpc_status.from_call(error)
    assert status is not None
    return status


def details(status: status_pb2.Status) -> dict[str, Any]:
    """The details of a status by the name of their kind."""
    found = {}
    for detail in status.details:
        name = detail.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert detail.Unpack(found[name])
    return found


EXAMPLES: dict[type[errors.SondeServerError], errors.SondeServerError] = {
    errors.InvalidQuestion: errors.InvalidQuestion([errors.Violation("prompt.text", "too long")]),
    errors.NotFinite: errors.NotFinite("block 3 overflows"),
    errors.Unsupported: errors.Unsupported("site.component", "not here"),
    errors.Busy: errors.Busy("the queue is full", 1.5),
    errors.QueueFull: errors.QueueFull("7 runs wait", 1, asked=7, allowed=5),
    errors.TooManyRequests: errors.TooManyRequests("3 are in progress", 1, asked=3, allowed=2),
    errors.TooManyRuns: errors.TooManyRuns("used up", 0.25),
    errors.OutOfMemory: errors.OutOfMemory("the device is full", 2),
    errors.Unauthenticated: errors.Unauthenticated("who is it?"),
    errors.NotServing: errors.NotServing("still loading"),
    errors.Stopped: errors.Stopped("nobody waits"),
    errors.UnsupportedModel: errors.UnsupportedModel("no such family"),
}


def kinds(base: type[errors.SondeServerError]) -> set[type[errors.SondeServerError]]:
    return {kind for child in base.__subclasses__() for kind in {child, *kinds(child)}}


def test_the_catalogue_has_every_kind() -> None:
    assert set(CATALOGUE) == kinds(errors.SondeServerError) == set(EXAMPLES)


@pytest.mark.parametrize("error", EXAMPLES.values(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("sent", [0, 2])
def test_every_kind_arrives_with_its_details(error: errors.SondeServerError, sent: int) -> None:
    with failing(error, sent) as stub:
        stream = stub.Trace(pb.TraceRequest(), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    status = status_in(caught.value)
    assert status.code == CATALOGUE[type(error)].code
    info = details(status)["ErrorInfo"]
    assert (info.domain, info.reason) == ("sonde", CATALOGUE[type(error)].reason)


def test_a_caller_can_tell_every_kind_by_its_reason() -> None:
    reasons = [entry.reason for entry in ENTRIES]
    assert len(set(reasons)) == len(reasons)
    assert all(entry.text and entry.reason == entry.reason.upper() for entry in ENTRIES)
    # The page for callers of other languages lists them all.
    page = (Path(__file__).parents[1] / "proto" / "README.md").read_text(encoding="utf-8")
    assert [entry.reason for entry in ENTRIES if f"`{entry.reason}`" not in page] == []
    assert [code_pb2.Code.Name(entry.code) for entry in ENTRIES if code_pb2.Code.Name(entry.code) not in page] == []


def test_an_error_that_says_nothing_has_its_kinds_text() -> None:
    assert status_of(errors.Stopped("")).message == CATALOGUE[errors.Stopped].text


def test_two_numbers_that_do_not_fit_are_told_to_programs() -> None:
    info = details(status_of(EXAMPLES[errors.QueueFull]))["ErrorInfo"]
    assert dict(info.metadata) == {"asked": "7", "allowed": "5"}


def test_details_say_where_and_when() -> None:
    found = details(status_of(EXAMPLES[errors.InvalidQuestion]))["BadRequest"]
    assert [(one.field, one.description) for one in found.field_violations] == [("prompt.text", "too long")]
    found = details(status_of(EXAMPLES[errors.Unsupported]))["BadRequest"]
    assert [(one.field, one.description) for one in found.field_violations] == [("site.component", "not here")]
    delay = details(status_of(EXAMPLES[errors.Busy]))["RetryInfo"].retry_delay
    assert (delay.seconds, delay.nanos) == (1, 500_000_000)
    expired = status_of(EXAMPLES[errors.Stopped], expired=True)
    assert expired.code == code_pb2.DEADLINE_EXCEEDED
    assert details(expired)["ErrorInfo"].reason == "DEADLINE_EXCEEDED"


def test_a_flood_of_violations_still_fits_in_the_headers() -> None:
    many = [errors.Violation(f"list.interventions[{i}].edits[0].site.layers[0]", "é" * 1000) for i in range(500)]
    with failing(errors.InvalidQuestion(many)) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(), timeout=20)
    status = status_in(caught.value)
    assert status.ByteSize() * 4 / 3 < METADATA_LIMIT
    found = details(status)["BadRequest"].field_violations
    assert found[0].field == many[0].field
    assert "more violations, not shown" in found[-1].description


@pytest.mark.parametrize("sent", [0, 1])
def test_an_unexpected_error_tells_an_id_and_nothing_else(sent: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.ERROR),
        failing(ZeroDivisionError("secret"), sent) as stub,
        pytest.raises(grpc.RpcError) as caught,
    ):
        list(stub.Trace(pb.TraceRequest(), timeout=20))
    status = status_in(caught.value)
    assert status.code == code_pb2.INTERNAL
    found = details(status)
    request_id = found["RequestInfo"].request_id
    assert found["ErrorInfo"].reason == "INTERNAL"
    assert b"secret" not in status.SerializeToString()
    assert request_id in status.message
    assert request_id in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


def test_a_call_that_was_aborted_keeps_its_status() -> None:
    with failing(None) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "on purpose"
