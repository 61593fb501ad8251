"""What can go wrong, as a caller can act on it.

    SondeError
    ├── InvalidRequest      the request is wrong, and `violations` say where; also a ValueError
    ├── Unsupported         this model or server does not have what was asked for
    ├── Busy                not now: queue full, quota used up, device memory short; see `retry_after`
    ├── NotServing          nobody answers there, or the model is loading, or the server is shutting down
    ├── DeadlineExceeded    the timeout ran out, and the server has stopped the work; also a TimeoutError
    ├── Cancelled           the call was cancelled
    ├── Unauthenticated     no token, or a wrong one
    ├── PermissionDenied    a good token that may not do this
    ├── InternalError       the server failed; `request_id` finds it in the server's log
    ├── ProtocolError       the answer is not what the contract promises, or ends too early
    └── InvalidSettings     the client's own settings contradict each other; also a ValueError

The transport's exceptions never come out of this package.
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
    """What was given and what would do."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class SondeError(Exception):
    """The base of everything that this package raises on purpose."""

    retryable: bool = False
    """Whether the same request may well be answered a little later."""

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
        """The server's constant for what happened, such as `QUEUE_FULL`; empty if it gave none."""
        self.metadata: dict[str, str] = dict(metadata or {})
        """The values that belong to the reason."""
        self.request_id = request_id or self.metadata.get("request_id", "")
        """What the server's log calls this request; empty if it did not say."""


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
        """Everything that is wrong, not only the first."""

    @classmethod
    def at(cls, field: str, description: str) -> Self:
        """What the client itself sees to be wrong before it asks."""
        violation = Violation(field, description)
        return cls(str(violation), violations=[violation])


class Unsupported(SondeError):
    """This model or server does not have what was asked for; the message says why."""


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
    """Nobody answers at the address, or no longer, or the model is loading, or the server is shutting down."""

    retryable = True


class DeadlineExceeded(SondeError, TimeoutError):
    """The timeout ran out. The server has stopped the work."""


class Cancelled(SondeError):
    """The call was cancelled, by the server or by closing the client."""


class Unauthenticated(SondeError):
    """The server wants a token, or another one."""


class PermissionDenied(SondeError):
    """The token is good, but not for this."""


class InternalError(SondeError):
    """The server failed. `request_id` finds the reason in its log."""


class ProtocolError(SondeError):
    """The answer is not what the contract promises: another version, another service, or a stream cut short."""


class InvalidSettings(SondeError, ValueError):
    """The client's settings contradict each other, or would send a token in the clear; or it is used in two loops."""


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
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.ABORTED: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: NotServing,
    grpc.StatusCode.DATA_LOSS: InternalError,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
"""Every status a call can end with, and what it becomes."""


class FailedCall(Protocol):
    """What a call that failed can tell, in both of gRPC's Python interfaces."""

    def code(self) -> grpc.StatusCode | None:
        """The status."""

    def details(self) -> str | None:
        """Its message."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Where google.rpc.Status comes."""


@dataclass(slots=True)
class _Details:
    """The google.rpc details of a status; each kind comes at most once."""

    reason: str = ""
    metadata: Mapping[str, str] | None = None
    request_id: str = ""
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None


def from_call(call: FailedCall, address: str, proxy: str = "") -> SondeError:
    """The error that a failed call to `address` amounts to. `proxy` says in words which proxy is in the way, if any."""
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
    # The transport says "too large" with the code of a full queue; waiting would not help.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not details.reason and "larger than max" in message:
        return ProtocolError if "CLIENT:" in message else InvalidRequest
    # What a proxy makes of a server that died in the middle of an answer. Our own errors have a reason.
    broken = code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED) and "RST_STREAM" in message
    if broken and not details.reason:
        return NotServing
    # What a call becomes that came in the very moment in which its server began to shut down. A server that ends a call
    # on purpose gives a reason, and what was ended here says so.
    if code is grpc.StatusCode.CANCELLED and not details.reason and message == "CANCELLED":
        return NotServing
    return KINDS.get(code, ProtocolError)


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
            continue  # Another's status: the code and the message still count.
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
            details.violations = tuple(Violation(v.field, v.description) for v in request.field_violations)
        elif packed.Unpack(retry):
            details.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif packed.Unpack(named):
            details.request_id = named.request_id
