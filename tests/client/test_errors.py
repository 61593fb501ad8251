"""Every way a call can fail, over a real connection."""

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import sonde
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from sonde import errors

INFO = error_details_pb2.ErrorInfo(reason="WHY", domain="sonde", metadata={"limit": "3"})


def failure(peer: Any, *steps: Any) -> sonde.SondeError:
    peer.steps = list(steps)
    with sonde.Client(peer.address) as client, pytest.raises(sonde.SondeError) as caught:
        client.trace("x")
    assert not isinstance(caught.value, grpc.RpcError)
    return caught.value


def test_every_status_has_its_kind() -> None:
    assert set(errors.KINDS) == set(grpc.StatusCode)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    kinds = {kind.__name__ for kind in errors.SondeError.__subclasses__()}
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert drawn == kinds
    assert kinds <= set(sonde.__all__)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_status_arrives_as_its_kind_with_reason_and_metadata(peer: Any, fail: Any, code: grpc.StatusCode) -> None:
    error = failure(peer, fail(code, "what happened", INFO))
    assert type(error) is errors.KINDS[code]
    assert str(error) == "what happened"
    assert (error.reason, error.metadata) == ("WHY", {"limit": "3"})


def test_violations_name_their_fields(peer: Any, fail: Any) -> None:
    request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="list.interventions[0]", description="no edits"),
            error_details_pb2.BadRequest.FieldViolation(field="prompt", description="empty"),
        ]
    )
    error = failure(peer, fail(grpc.StatusCode.INVALID_ARGUMENT, "invalid", INFO, request))
    assert isinstance(error, sonde.InvalidRequest)
    assert isinstance(error, ValueError)
    assert [(v.field, v.description) for v in error.violations] == [
        ("list.interventions[0]", "no edits"),
        ("prompt", "empty"),
    ]
    assert str(error) == "list.interventions[0]: no edits; prompt: empty"


def test_a_path_has_the_names_that_python_users_write(peer: Any, fail: Any) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation
    paths = ["list.interventions[0].edits[1].set.data", "sweep.edit.set", "sweep.always[0].set", "sweep.edit.settings"]
    request = error_details_pb2.BadRequest(field_violations=[violation(field=path) for path in paths])
    error = failure(peer, fail(grpc.StatusCode.INVALID_ARGUMENT, "invalid", INFO, request))
    assert isinstance(error, sonde.InvalidRequest)
    assert [violation.field for violation in error.violations] == [
        "list.interventions[0].edits[1].replace.data",
        "sweep.edit.replace",
        "sweep.always[0].replace",
        "sweep.edit.settings",
    ]


def test_busy_says_when_to_come_back(peer: Any, fail: Any) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=500_000_000))
    error = failure(peer, fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", INFO, retry))
    assert isinstance(error, sonde.Busy)
    assert error.retry_after == 2.5


@pytest.mark.parametrize(
    "details",
    [
        [error_details_pb2.ErrorInfo(reason="INTERNAL", metadata={"request_id": "abc"})],
        [INFO, error_details_pb2.RequestInfo(request_id="abc")],
    ],
)
def test_an_internal_error_has_the_id_to_look_for(peer: Any, fail: Any, details: Any) -> None:
    error = failure(peer, fail(grpc.StatusCode.INTERNAL, "internal error", *details))
    assert error.request_id == "abc"


def test_a_status_without_details_still_has_its_kind(peer: Any) -> None:
    error = failure(peer, lambda context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "who?"))
    assert type(error) is sonde.Unauthenticated
    assert error.reason == ""


def test_broken_details_do_not_hide_the_error(peer: Any) -> None:
    def step(context: Any) -> None:
        context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff")])
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    assert type(failure(peer, step)) is sonde.PermissionDenied


def test_an_error_in_the_middle_of_a_stream_is_an_error(peer: Any, fail: Any, answers: Any) -> None:
    first = answers.causal()[0]
    assert type(failure(peer, first, fail(grpc.StatusCode.UNAVAILABLE, "going down", INFO))) is sonde.NotServing
    assert len(peer.requests) == 1, "an answer that has begun was asked for again"


@pytest.mark.parametrize(
    ("code", "kind"), [(grpc.StatusCode.INTERNAL, sonde.InternalError), (grpc.StatusCode.CANCELLED, sonde.Cancelled)]
)
def test_a_proxy_that_lost_its_server_is_one_that_does_not_serve(peer: Any, fail: Any, code: Any, kind: Any) -> None:
    gone = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"
    error = failure(peer, lambda context: context.abort(code, gone))
    assert (type(error), error.retryable) == (sonde.NotServing, True)
    ours = failure(peer, fail(code, gone, INFO))
    assert (type(ours), ours.retryable) == (kind, False)


def test_a_call_that_a_shutdown_swept_away_may_be_tried_again(peer: Any, fail: Any) -> None:
    assert type(failure(peer, lambda context: context.cancel())) is sonde.NotServing
    assert type(failure(peer, fail(grpc.StatusCode.CANCELLED, "CANCELLED", INFO))) is sonde.Cancelled


def test_nobody_there() -> None:
    with sonde.Client("127.0.0.1:1") as client, pytest.raises(sonde.NotServing, match=r"no server .* 127\.0\.0\.1:1"):
        client.trace("x")


def test_another_service() -> None:
    server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with sonde.Client(f"127.0.0.1:{port}") as client, pytest.raises(sonde.Unsupported, match="does not speak"):
            client.model  # noqa: B018
    finally:
        server.stop(None).wait()


def test_a_message_that_is_too_large_is_not_a_full_queue(peer: Any) -> None:
    huge = sonde.v1.inspection_pb2.TraceResponse(
        layers=sonde.v1.inspection_pb2.LayerReadings(ranks=sonde.v1.inspection_pb2.Tensor(data=bytes(65 * 2**20)))
    )
    assert type(failure(peer, huge)) is sonde.ProtocolError


def test_a_request_that_is_too_large_is_invalid(peer: Any) -> None:
    with sonde.Client(peer.address) as client, pytest.raises(sonde.InvalidRequest, match="larger than max"):
        client.trace("x" * (5 * 2**20))


def test_a_server_that_goes_between_two_attempts_is_not_waited_for() -> None:
    """Beyond its deadline, as gRPC's usual reader of streams did."""
    asked = threading.Event()

    def unavailable(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        asked.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        yield b""

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Trace": grpc.unary_stream_rpc_method_handler(unavailable)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("sonde.v1.InspectionService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended: list[BaseException] = []

    def ask() -> None:
        with sonde.Client(f"127.0.0.1:{port}", timeout=5) as client:
            try:
                client.trace("x")
            except sonde.SondeError as error:
                ended.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert asked.wait(20)
    server.stop(0).wait()
    asking.join(30)
    assert [type(error) for error in ended] == [sonde.NotServing]


def test_unavailable_alone_is_tried_again(peer: Any, fail: Any) -> None:
    failure(peer, fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", INFO))
    assert len(peer.requests) == 1
    peer.requests.clear()
    failure(peer, fail(grpc.StatusCode.UNAVAILABLE, "loading", INFO))
    assert len(peer.requests) == 4


def test_errors_can_be_pickled() -> None:
    error = sonde.InvalidRequest.at("prompt", "it is empty")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(copy), copy.violations) == (str(error), error.violations)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": ""}, "address"),
        ({"address": "gpu.example.org:50051", "token": "secret"}, "unencrypted"),
        ({"address": "dns://ns.example.org/localhost:1", "token": "secret"}, "unencrypted"),
        ({"token": ""}, "token"),
        ({"token": "new\nline"}, "token"),
        ({"timeout": 0}, "timeout"),
        ({"tls": sonde.TLS(root_certificate="/nowhere/ca.pem")}, "cannot read"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(sonde.InvalidSettings, match=words) as caught:
        sonde.Client(**arguments)
    assert "secret" not in str(caught.value)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(sonde.InvalidSettings, match="key"):
        sonde.TLS(certificate=b"pem")
