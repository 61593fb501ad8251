"""The handlers in Ray's proxies, between the clients and Ray's replicas.

Each of Ray's proxies calls `add_to_server`, and would replace the handlers with its own, which forward little more
than messages: the details of errors and the deadline are lost, and a replica that dies is an INTERNAL error with a
traceback. So the handlers here stay in place, and call Ray's.
"""

import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from secrets import token_hex
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from sonde.v1 import inspection_pb2 as pb

from ..errors import InvalidQuestion, NotServing, SondeServerError, Stopped, TooManyRequests, Violation
from ..serving.guards.errors import internal_status, status_of

SERVICE: Final = pb.DESCRIPTOR.services_by_name["InspectionService"].full_name
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
TIMEOUT_KEY: Final = "sonde-seconds-left"
"""The metadata key for the seconds that the caller will wait."""
SESSION_KEY: Final = "session_id"
"""Ray's metadata key: requests with the same value go to the same replica. Callers may set it."""
RETRY_SECONDS: Final = 1.0
_DETAILS_KEY: Final = "grpc-status-details-bin"
_PROMPTED: Final[dict[str, type[pb.TraceRequest | pb.InterveneRequest]]] = {
    "Trace": pb.TraceRequest,
    "Intervene": pb.InterveneRequest,
}

_log = logging.getLogger(__name__)


def add_to_server(_servicer: Any, server: Any) -> None:
    """Add the methods to the server of one of Ray's proxies. Name this function in grpc_servicer_functions."""
    single, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    methods: dict[str, dict[str, Any]] = {
        SERVICE: {
            "GetModel": single(_answer(server, SERVICE, "GetModel")),
            "Trace": stream(_answers(server, SERVICE, "Trace")),
            "Intervene": stream(_answers(server, SERVICE, "Intervene")),
        },
        HEALTH: {"Check": single(_answer(server, HEALTH, "Check"))},
    }
    for service, handlers in methods.items():
        # Ray does not replace the handlers of such a service.
        server.add_passthrough_service(service)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_registered_method_handlers(service, handlers)


def _answer(server: Any, service: str, method: str) -> Callable[..., Any]:
    """A method with a single answer. Requests and answers stay bytes, which the replica's guards check."""
    ask = server.service_handler_factory(service_method=f"/{service}/{method}", streaming_type="unary_unary")

    async def answer(request: bytes, context: Any) -> bytes:
        response: bytes = await ask(request, _Context(context, method, request))
        _finish(context)
        return response

    return answer


def _answers(server: Any, service: str, method: str) -> Callable[..., Any]:
    """A method with a stream of answers."""
    ask = server.service_handler_factory(service_method=f"/{service}/{method}", streaming_type="unary_stream")

    async def answers(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async for message in ask(request, _Context(context, method, request)):
            # An empty message is no answer: the replica sent it because Ray only forwards a status with a message.
            if message:
                yield message
        _finish(context)

    return answers


class _Context:
    """A call's context, with the metadata that Ray would not forward."""

    def __init__(self, context: Any, method: str, request: bytes) -> None:
        self._context = context
        self._metadata = [pair for pair in context.invocation_metadata() if pair[0] != TIMEOUT_KEY]
        remaining = context.time_remaining()
        if remaining is not None:
            self._metadata.append((TIMEOUT_KEY, f"{remaining:.6f}"))
        if all(key != SESSION_KEY for key, _ in self._metadata) and (session := prompt_of(method, request)):
            self._metadata.append((SESSION_KEY, session))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """The metadata of the call, and what was added."""
        return self._metadata


def prompt_of(method: str, request: bytes) -> str:
    """A name for the prompt of a request; empty if it has none."""
    kind = _PROMPTED.get(method)
    if kind is None:
        return ""
    try:
        prompt = kind.FromString(request).prompt
    except DecodeError:
        return ""  # the replica refuses it
    return hashlib.sha256(prompt.SerializeToString(deterministic=True)).hexdigest()


def _finish(context: Any) -> None:
    """Replace the error with which Ray ended a call by one that callers can act on."""
    code = _code(context)
    if code is grpc.StatusCode.OK or any(key == _DETAILS_KEY for key, _ in context.trailing_metadata() or ()):
        return
    request_id = token_hex(8)
    # A caller that has gone away is not worth a warning.
    level = logging.DEBUG if code is grpc.StatusCode.CANCELLED else logging.WARNING
    _log.log(level, "request %s: Ray says %s: %s", request_id, code.name, context.details())
    told: Any = rpc_status.to_status(_status(code, str(context.details()), request_id))
    context.set_code(told.code)
    context.set_details(told.details)
    context.set_trailing_metadata(tuple(told.trailing_metadata))


def _code(context: Any) -> grpc.StatusCode:
    """The status that was set, which gRPC returns either as a number or as a constant."""
    code = context.code()
    return next((one for one in grpc.StatusCode if code is one or one.value[0] == code), grpc.StatusCode.OK)


def _status(code: grpc.StatusCode, details: str, request_id: str) -> status_pb2.Status:
    """Translate an error of Ray. Replicas report their own errors, so without a report the replica is gone."""
    error: SondeServerError
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED | grpc.StatusCode.CANCELLED:
            return status_of(Stopped(), expired=code is grpc.StatusCode.DEADLINE_EXCEEDED, request_id=request_id)
        case _ if "larger than max" in details:
            text = "the request is too large for Ray; see RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
            error = InvalidQuestion([Violation("", text)])
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            error = TooManyRequests("the queue is full; retry later", RETRY_SECONDS)
        case grpc.StatusCode.NOT_FOUND:
            text = "no application is deployed yet, or there are several; name one in the metadata 'application'"
            error = NotServing(text)
        case grpc.StatusCode.UNAVAILABLE:
            error = NotServing("no replica is serving right now; they may still be starting")
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
            error = NotServing("the replica failed and is being replaced; retry")
        case _:
            return internal_status(request_id)
    return status_of(error, request_id=request_id)
