"""Errors to google.rpc.Status with details. What is not of our kinds becomes INTERNAL with a request id, no more."""

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from ..errors import (
    Busy,
    InvalidQuestion,
    NotServing,
    SondeServerError,
    Stopped,
    Unsupported,
    UnsupportedModel,
    Violation,
)

DOMAIN = "sonde"
# A status travels in headers, of which clients take 8 KiB by default; base64 adds a third.
LONGEST_TEXT = 240
DETAILS_BYTES = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """How a kind of error is answered."""

    code: int
    reason: str


CATALOGUE: dict[type[SondeServerError], Entry] = {
    InvalidQuestion: Entry(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST"),
    Unsupported: Entry(code_pb2.UNIMPLEMENTED, "UNSUPPORTED"),
    Busy: Entry(code_pb2.RESOURCE_EXHAUSTED, "BUSY"),
    NotServing: Entry(code_pb2.UNAVAILABLE, "NOT_SERVING"),
    Stopped: Entry(code_pb2.CANCELLED, "CANCELLED"),
    UnsupportedModel: Entry(code_pb2.FAILED_PRECONDITION, "UNSUPPORTED_MODEL"),
}
DEADLINE_EXCEEDED = Entry(code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
INTERNAL = Entry(code_pb2.INTERNAL, "INTERNAL")


def status_of(error: SondeServerError, *, expired: bool = False) -> status_pb2.Status:
    """The status of an error of ours; `expired`: the call's deadline has passed."""
    entry = next(CATALOGUE[kind] for kind in type(error).__mro__ if kind in CATALOGUE)
    text, details, metadata = str(error), list[Message](), dict[str, str]()
    match error:
        case InvalidQuestion():
            text = _summary(error.violations)
            details.append(_bad_request(error.violations))
        case Unsupported():
            metadata["field"] = error.field
            details.append(_bad_request([Violation(error.field, str(error).removeprefix(f"{error.field}: "))]))
        case Busy():
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(max(0, int(error.retry_after * 1e9)))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        case Stopped() if expired:
            entry = DEADLINE_EXCEEDED
    return _status(entry, _shorten(text), metadata, details)


def internal_status(request_id: str) -> status_pb2.Status:
    """What a caller learns of an unexpected error: an id to ask about."""
    details = [error_details_pb2.RequestInfo(request_id=request_id)]
    return _status(INTERNAL, f"internal error; request id {request_id}", {"request_id": request_id}, details)


class ErrorGuard(grpc.ServerInterceptor):
    """Answers every error of the handlers below `prefix`, also one that is raised while an answer streams."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wraps the handler."""
        handler = continuation(handler_call_details)
        if handler is None or not str(handler_call_details.method).startswith(self._prefix):
            return handler
        if handler.request_streaming:
            return handler
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming and handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(_guard_stream(handler.unary_stream), **coders)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_guard_single(handler.unary_unary), **coders)
        return handler


def _guard_single(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(request, context)
        except Exception as error:
            _answer(error, context)

    return guarded


def _guard_stream(behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            # Not returned but delegated to: most errors come while it is iterated.
            yield from behaviour(request, context)
        except Exception as error:
            _answer(error, context)

    return guarded


def _answer(error: Exception, context: Any) -> None:  # the stubs know of no code(), and of a deadline always
    if isinstance(error, SondeServerError):
        remaining = context.time_remaining()
        status = status_of(error, expired=remaining is not None and remaining <= 0)
    elif context.code() is not None:
        # context.abort raises a bare Exception: this call is answered already.
        raise error
    else:
        request_id = secrets.token_hex(8)
        _log.error("request %s failed", request_id, exc_info=error)
        status = internal_status(request_id)
    context.abort_with_status(rpc_status.to_status(status))


def _bad_request(violations: list[Violation]) -> error_details_pb2.BadRequest:
    """As many violations as a header holds."""
    message = error_details_pb2.BadRequest()
    for i, violation in enumerate(violations):
        text = _shorten(violation.description)
        if message.ByteSize() + len(text.encode()) > DETAILS_BYTES:
            left = len(violations) - i
            message.field_violations.add(field=violation.field, description=f"this and {left - 1} more are left out")
            break
        message.field_violations.add(field=violation.field, description=text)
    return message


def _summary(violations: list[Violation]) -> str:
    first = f"{violations[0].field}: {violations[0].description}"
    return first if len(violations) == 1 else f"{len(violations)} fields are wrong; the first: {first}"


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def _status(entry: Entry, text: str, metadata: dict[str, str], details: list[Any]) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=entry.reason, domain=DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=entry.code, message=text)
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
