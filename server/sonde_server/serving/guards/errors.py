"""Turns errors into google.rpc.Status with details. Unexpected ones become INTERNAL with only a request id."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ...errors import Busy, InvalidQuestion, SondeServerError, Stopped, Unsupported, Violation
from .calls import Call, begin_call, current_call
from .catalogue import CATALOGUE, DEADLINE_EXCEEDED, INTERNAL, Entry, entry_of
from .pipeline import Guard

__all__ = ["CATALOGUE", "ErrorGuard", "internal_status", "status_of"]

DOMAIN = "sonde"
# A status is sent in headers. Clients accept 8 KiB of them by default, and base64 adds a third.
LONGEST_TEXT = 240
DETAILS_BYTES = 4096

_log = logging.getLogger(__name__)
Translate = Callable[[BaseException], SondeServerError | None]


def _untranslated(_error: BaseException) -> None:
    return None


def status_of(error: SondeServerError, *, expired: bool = False, request_id: str = "") -> status_pb2.Status:
    """The status of an error; `expired`: the call's deadline has passed."""
    entry = entry_of(error)
    text, details, metadata = str(error) or entry.text, list[Message](), dict[str, str]()
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
            numbers = {"asked": error.asked, "allowed": error.allowed}
            metadata |= {name: f"{number:.15g}" for name, number in numbers.items() if number is not None}
        case Stopped() if expired:
            entry = DEADLINE_EXCEEDED
            text = entry.text
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return _status(entry, _shorten(text), metadata, details)


def internal_status(request_id: str) -> status_pb2.Status:
    """The status of an unexpected error. It tells the caller only the request id."""
    details = [error_details_pb2.RequestInfo(request_id=request_id)]
    return _status(INTERNAL, f"{INTERNAL.text}; request id {request_id}", {"request_id": request_id}, details)


class ErrorGuard(Guard):
    """Ends a call that raises an error with its status, also while the answer is being streamed.

    `translate` turns other errors into SondeServerError, or returns None; `unexpected` is called with the rest.
    """

    def __init__(
        self,
        prefix: str = "/",
        translate: Translate = _untranslated,
        unexpected: Callable[[BaseException], None] = _untranslated,
    ) -> None:
        super().__init__(prefix)
        self._translate = translate
        self._unexpected = unexpected

    @contextmanager
    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> Iterator[None]:
        """End the call with the status of the error that is raised."""
        try:
            yield
        except Exception as error:
            self._answer(error, context, current_call() or begin_call(details))

    def _answer(self, error: Exception, context: Any, call: Call) -> None:  # the stubs lack code()
        ours = error if isinstance(error, SondeServerError) else self._translate(error)
        if ours is not None:
            if ours is not error:
                _log.warning("request %s: %s (%s)", call.id, ours, type(error).__name__)
            status = status_of(ours, expired=call.expired(context), request_id=call.id)
        elif context.code() is not None:
            # context.abort has raised this, so the call has its status already.
            raise error
        else:
            _log.error("request %s failed", call.id, exc_info=error)
            status = internal_status(call.id)
            self._unexpected(error)
        context.abort_with_status(rpc_status.to_status(status))


def _bad_request(violations: list[Violation]) -> error_details_pb2.BadRequest:
    """The violations, cut to what fits into a header."""
    message = error_details_pb2.BadRequest()
    for i, violation in enumerate(violations):
        text = _shorten(violation.description)
        if message.ByteSize() + len(text.encode()) > DETAILS_BYTES:
            left = len(violations) - i
            message.field_violations.add(field=violation.field, description=f"and {left} more violations, not shown")
            break
        message.field_violations.add(field=violation.field, description=text)
    return message


def _summary(violations: list[Violation]) -> str:
    first = str(violations[0])
    return first if len(violations) == 1 else f"{len(violations)} fields are invalid; the first: {first}"


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
