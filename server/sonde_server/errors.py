"""What can go wrong, in words a caller can act on. The guards map each kind to a gRPC status."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that cannot be served: its path, and what was given and what would do."""

    field: str
    description: str


class SondeServerError(Exception):
    """Base of everything that is answered with a status of its own."""


class InvalidQuestion(SondeServerError):
    """The request is wrong and will stay so."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = violations


class Unsupported(SondeServerError):
    """The request is well formed, but this server or this architecture does not have what it asks for."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class Busy(SondeServerError):
    """Not now: the queue or the device's memory is full."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotServing(SondeServerError):
    """The model is still loading, or the server is shutting down."""


class Stopped(SondeServerError):
    """The caller went away or its deadline passed; the work was dropped."""


class UnsupportedModel(SondeServerError):
    """The model cannot be hosted; the message says why and what would do."""
