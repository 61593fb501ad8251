"""Errors that callers can act on. The guards map each kind to a gRPC status."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Violation:
    """One invalid field of a request: its path (empty for the whole request), and what was expected and given."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class SondeServerError(Exception):
    """Base class of errors that have a gRPC status of their own."""


class InvalidQuestion(SondeServerError):
    """The request is invalid; a retry will not help."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(str(violation) for violation in violations))
        self.violations = violations


class Unsupported(SondeServerError):
    """The request is valid, but this server or this architecture does not support it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotFinite(SondeServerError):
    """The model's own arithmetic overflows for this prompt; in a wider data type it may not."""


def of_case(error: Exception, number: int) -> Exception:
    """The error of one of many cases, with the case's number; an error that is not about the question, as it is."""
    match error:
        case InvalidQuestion(violations=violations):
            named = [replace(one, description=f"case {number}: {one.description}") for one in violations]
            return InvalidQuestion(named)
        case Unsupported(field=field, reason=reason):
            return Unsupported(field, f"case {number}: {reason}")
        case NotFinite():
            return NotFinite(f"case {number}: {error}")
    return error


class Busy(SondeServerError):
    """The request cannot be served right now. `asked` exceeds `allowed`, if the reason is a limit."""

    def __init__(
        self, message: str, retry_after: float, *, asked: float | None = None, allowed: float | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.asked = asked
        self.allowed = allowed


class QueueFull(Busy):
    """The questions in progress leave no room in the queue for this one."""


class TooManyRequests(Busy):
    """The caller, or all callers together, have reached the limit of concurrent requests."""


class TooManyRuns(Busy):
    """The caller has exceeded its runs per second."""


class OutOfMemory(Busy):
    """The device or the machine does not have enough free memory for the request right now."""


class NotServing(SondeServerError):
    """The model is still loading, or the server is shutting down."""


class Stopped(SondeServerError):
    """The caller went away or its deadline passed, and the work was dropped."""


class Unauthenticated(SondeServerError):
    """The caller did not present valid credentials."""


class UnsupportedModel(SondeServerError):
    """The model cannot be hosted; the message says why, and what to do about it."""
