"""The errors that this package raises: one class for each way in which a caller can react.

    SondeError
    ├── InvalidRequest      the request is wrong; `violations` lists the fields. Also a ValueError
    ├── Unsupported         this model or server does not support what was asked
    ├── Busy                not now: queue full, quota used up or device memory short; see `retry_after`
    ├── NotServing          no server answers, or it is loading its model or shutting down
    ├── DeadlineExceeded    the timeout expired and the server stopped the work. Also a TimeoutError
    ├── Cancelled           the call was cancelled
    ├── Unauthenticated     the token is missing or wrong
    ├── PermissionDenied    the token is valid but does not allow this
    ├── InternalError       the server failed; look up `request_id` in its log
    ├── ProtocolError       the answer breaks the contract or ends too early
    └── InvalidSettings     the client's settings contradict each other. Also a ValueError

The transport's own exceptions never leave this package.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_STATUS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request."""

    field: str
    """The path of the field, such as `list.interventions[3].edits[0].site.layers[0]`."""
    description: str
    """What was expected and what was given."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class SondeError(Exception):
    """The base class of all errors that this package raises deliberately."""

    retryable: bool = False
    """Whether it makes sense to repeat the same request a little later."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        """The server's constant for the cause, such as `QUEUE_FULL`; empty if the server sent none."""
        self.metadata: dict[str, str] = dict(metadata or {})
        """The values that belong to the reason."""
        self.request_id = request_id or self.metadata.get("request_id", "")
        """The request's name in the server's log; empty if the server did not send it."""


class InvalidRequest(SondeError, ValueError):
    """The request is wrong; nothing was computed."""

    def __init__(
        self,
        message: str,
        *,
        violations: Iterable[Violation] = (),
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, request_id=request_id)
        self.violations = tuple(violations)
        """All violations, not only the first."""

    @classmethod
    def at(cls, field: str, description: str) -> Self:
        """An error that the client finds itself, before it sends anything."""
        violation = Violation(field, description)
        return cls(str(violation), violations=[violation])


class Unsupported(SondeError):
    """This model or server does not support what was asked; the message says why."""


class Busy(SondeError):
    """Not now: the queue is full, a quota is used up or device memory is short."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, request_id=request_id)
        self.retry_after = retry_after
        """Seconds to wait before trying again, if the server knows."""


class NotServing(SondeError):
    """No server answers at the address, or the server is loading its model or shutting down."""

    retryable = True


class DeadlineExceeded(SondeError, TimeoutError):
    """The timeout expired. The server has stopped the work."""


class Cancelled(SondeError):
    """The call was cancelled, by the server or by closing the client."""


class Unauthenticated(SondeError):
    """The token is missing or wrong."""


class PermissionDenied(SondeError):
    """The token is valid but does not allow this request."""


class InternalError(SondeError):
    """The server failed. Look up `request_id` in its log for the cause."""


class ProtocolError(SondeError):
    """The answer breaks the contract: a different version, a different service, or a stream that ended early."""


class InvalidSettings(SondeError, ValueError):
    """The client's settings contradict each other or would send a token unencrypted.

    Also raised if an `AsyncClient` is used in a second event loop.
    """


KINDS: Final[Mapping[grpc.StatusCode, type[SondeError]]] = {
    grpc.StatusCode.OK: ProtocolError,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: ProtocolError,
    grpc.StatusCode.ALREADY_EXISTS: ProtocolError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.FAILED_PRECONDITION: Unsupported,
    grpc.StatusCode.ABORTED: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: NotServing,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
"""Every status that a call can end with, and the error it becomes."""


class FailedCall(Protocol):
    """What both of gRPC's Python interfaces report about a failed call."""

    def code(self) -> grpc.StatusCode | None:
        """The status."""

    def details(self) -> str | None:
        """Its message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Metadata that may hold a google.rpc.Status."""


@dataclass(slots=True)
class _Details:
    """The google.rpc details of a status, at most one of each kind."""

    reason: str = ""
    metadata: Mapping[str, str] | None = None
    request_id: str = ""
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None


def from_call(call: FailedCall, address: str, proxy: str = "") -> SondeError:
    """Convert a failed call to `address`, through `proxy` if there is one, into one of this package's errors."""
    code = call.code() or grpc.StatusCode.UNKNOWN
    message = call.details() or code.name.lower().replace("_", " ")
    details = _read_details(call)
    kind = _kind(code, message, details)
    common = {"reason": details.reason, "metadata": details.metadata, "request_id": details.request_id}
    if issubclass(kind, InvalidRequest):
        if details.violations:
            message = "; ".join(map(str, details.violations))
        return kind(message, violations=details.violations, **common)  # type: ignore[arg-type]
    if issubclass(kind, Busy):
        return kind(message, retry_after=details.retry_after, **common)  # type: ignore[arg-type]
    if kind is NotServing and not details.reason:
        verb = "serves" if message.startswith("connections to all backends failing") else "answers"
        message = f"no server {verb} at {address} ({_first_line(message)})"
    if kind is Unsupported and not details.reason:
        message = f"{address} does not speak this contract ({_first_line(message)})"
    if kind is DeadlineExceeded and not details.reason:
        message = f"no answer from {address} within the timeout"
    if proxy and kind in (NotServing, DeadlineExceeded) and not details.reason:
        message += f"; the call goes through {proxy}; name the server's host in no_proxy to go past it"
    return kind(message, **common)  # type: ignore[arg-type]


def _kind(code: grpc.StatusCode, message: str, details: _Details) -> type[SondeError]:
    # gRPC reports "message too large" with the status of a full queue, but waiting does not help here.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not details.reason and "larger than max" in message:
        return ProtocolError if "CLIENT:" in message else InvalidRequest
    # A proxy reports this when the server dies in the middle of an answer. Our own errors have a reason.
    broken = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED) and "RST_STREAM" in message
    if broken and not details.reason:
        return NotServing
    # A call ends like this if it arrives at the moment its server begins to shut down. When a server ends a call on
    # purpose it gives a reason, and when this client does, the message is different.
    if code is grpc.StatusCode.CANCELLED and not details.reason and message == "CANCELLED":
        return NotServing
    return KINDS.get(code, ProtocolError)


def _as_written(path: str) -> str:
    """Rename fields to what this package calls them: the contract's `set` is `replace` here."""
    return re.sub(r"\.set\b", ".replace", path)


def _first_line(message: str) -> str:
    """The transport's message without its list of attempted addresses."""
    return re.split(r"[\n;]", message, maxsplit=1)[0].strip()


def _read_details(call: FailedCall) -> _Details:
    details = _Details()
    for key, value in call.trailing_metadata() or ():
        if key != _STATUS_KEY or isinstance(value, str):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            _collect(status, details)
        except DecodeError:
            continue  # Somebody else's format; the code and the message are still valid.
    return details


def _collect(status: status_pb2.Status, details: _Details) -> None:
    for packed in status.details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        named = error_details_pb2.RequestInfo()
        if packed.Unpack(info):
            details.reason, details.metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(request):
            details.violations = tuple(Violation(_as_written(v.field), v.description) for v in request.field_violations)
        elif packed.Unpack(retry):
            details.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif packed.Unpack(named):
            details.request_id = named.request_id
