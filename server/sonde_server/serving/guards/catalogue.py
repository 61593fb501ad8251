"""The one list of how errors are answered: status, reason and public text of each kind."""

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
    """How a kind of error is answered."""

    code: int
    """Of google.rpc.Code, which is gRPC's."""
    reason: str
    """ErrorInfo.reason: a constant that callers may branch on."""
    text: str
    """What is said where the error itself says nothing."""


CATALOGUE: Final[Mapping[type[SondeServerError], Entry]] = {
    InvalidQuestion: Entry(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", "the request is wrong"),
    Unsupported: Entry(code_pb2.UNIMPLEMENTED, "UNSUPPORTED", "this model or server does not have it"),
    NotFinite: Entry(code_pb2.FAILED_PRECONDITION, "NOT_FINITE", "the model's numbers overflow for this prompt"),
    Busy: Entry(code_pb2.RESOURCE_EXHAUSTED, "BUSY", "not now"),
    QueueFull: Entry(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", "the queue is full"),
    TooManyRequests: Entry(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS", "too many requests are in progress"),
    TooManyRuns: Entry(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS", "the caller's runs are used up"),
    OutOfMemory: Entry(code_pb2.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", "there is not enough memory at the moment"),
    NotServing: Entry(code_pb2.UNAVAILABLE, "NOT_SERVING", "the model is loading, or the server is shutting down"),
    Stopped: Entry(code_pb2.CANCELLED, "CANCELLED", "the call was cancelled"),
    Unauthenticated: Entry(code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", "a token is needed"),
    UnsupportedModel: Entry(code_pb2.FAILED_PRECONDITION, "UNSUPPORTED_MODEL", "the model cannot be hosted"),
}
DEADLINE_EXCEEDED: Final = Entry(code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed")
INTERNAL: Final = Entry(code_pb2.INTERNAL, "INTERNAL", "internal error")
ENTRIES: Final = (*CATALOGUE.values(), DEADLINE_EXCEEDED, INTERNAL)


def entry_of(error: SondeServerError) -> Entry:
    """The entry of an error's kind, or of the nearest kind above it."""
    return next(CATALOGUE[kind] for kind in type(error).__mro__ if kind in CATALOGUE)
