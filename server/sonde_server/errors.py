"""What can go wrong, in words a caller can act on. The guards map each kind to a gRPC status."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that cannot be served: its path (empty: the whole), what was given and what would do."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class SondeServerError(Exception):
    """Base of everything that is answered with a status of its own."""


class InvalidQuestion(SondeServerError):
    """The request is wrong and will stay so."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(str(violation) for violation in violations))
        self.violations = violations


class Unsupported(SondeServerError):
    """The request is well formed, but this server or this architecture does not have what it asks for."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class NotFinite(SondeServerError):
    """The model's own arithmetic overflows for this prompt; in a wider data type it may not."""


class Busy(SondeServerError):
    """Not now. `asked` and `allowed` are the two numbers that do not go together, where there are two."""

    def __init__(
        self, message: str, retry_after: float, *, asked: float | None = None, allowed: float | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.asked = asked
        self.allowed = allowed


class QueueFull(Busy):
    """Others have asked for as much as the server keeps in line."""


class TooManyRequests(Busy):
    """The caller, or all callers together, have as many requests in progress as they may have."""


class TooManyRuns(Busy):
    """The caller has used up its runs per second."""


class OutOfMemory(Busy):
    """The memory of the device or of the machine does not hold, at the moment, what the request needs."""


class NotServing(SondeServerError):
    """The model is still loading, or the server is shutting down."""


class Stopped(SondeServerError):
    """The caller went away or its deadline passed; the work was dropped."""


class Unauthenticated(SondeServerError):
    """Whoever calls has not said, in a way that can be believed, who they are."""


class UnsupportedModel(SondeServerError):
    """The model cannot be hosted; the message says why and what would do."""
