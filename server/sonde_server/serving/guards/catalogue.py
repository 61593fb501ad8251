"""The status, reason and default text of each kind of error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.rpc import code_pb2

from ...errors import (
    Busy,
    InvalidQuestion,
    NotFinite,
    NotServing,
    OutOfMemory,
    QueueFull,
    SondeServerError,
    Stopped,
    TooManyRequests,
    TooManyRuns,
    Unauthenticated,
    Unsupported,
    UnsupportedModel,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """How a kind of error is reported."""

    code: int
    """The code, of google.rpc.Code."""
    reason: str
    """ErrorInfo.reason: a constant that clients can test for."""
    text: str
    """The message of an error that has none."""


CATALOGUE: Final[Mapping[type[SondeServerError], Entry]] = {
    InvalidQuestion: Entry(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", "the request is invalid"),
    Unsupported: Entry(code_pb2.UNIMPLEMENTED, "UNSUPPORTED", "this model or server does not support the request"),
    NotFinite: Entry(code_pb2.FAILED_PRECONDITION, "NOT_FINITE", "the model overflows its data type for this prompt"),
    Busy: Entry(code_pb2.RESOURCE_EXHAUSTED, "BUSY", "the server is busy; retry later"),
    QueueFull: Entry(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full"),
    TooManyRequests: Entry(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS", "too many requests are in progress"),
    TooManyRuns: Entry(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS", "the caller has exceeded its runs per second"),
    OutOfMemory: Entry(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "there is not enough memory right now"),
    NotServing: Entry(code_pb2.UNAVAILABLE, "NOT_SERVING", "the model is loading, or the server is shutting down"),
    Stopped: Entry(code_pb2.CANCELLED, "CANCELLED", "the call was cancelled"),
    Unauthenticated: Entry(code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", "the call needs valid credentials"),
    UnsupportedModel: Entry(code_pb2.FAILED_PRECONDITION, "UNSUPPORTED_MODEL", "the model cannot be hosted"),
}
DEADLINE_EXCEEDED: Final = Entry(code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed")
INTERNAL: Final = Entry(code_pb2.INTERNAL, "INTERNAL", "internal error")
ENTRIES: Final = (*CATALOGUE.values(), DEADLINE_EXCEEDED, INTERNAL)


def entry_of(error: SondeServerError) -> Entry:
    """The entry of an error's class, or of its nearest base class."""
    return next(CATALOGUE[kind] for kind in type(error).__mro__ if kind in CATALOGUE)
