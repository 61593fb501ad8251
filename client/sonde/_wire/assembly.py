"""Joining the messages of a stream into one result.

An assembler is fed each message in turn. `partial()` returns what is known so far, with NaN where nothing has arrived;
`result()` returns the whole result, or raises a ProtocolError that names what is missing.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol, TypeVar

from sonde._answers.requests import Request
from sonde._wire.context import Context
from sonde._wire.parts import missing
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

ResponseT_contra = TypeVar("ResponseT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Assembler(Protocol[ResponseT_contra, ResultT_co]):
    """Joins the messages of one stream."""

    progress: tuple[int, int]

    def feed(self, message: ResponseT_contra) -> None:
        """Take the next message."""

    def partial(self) -> ResultT_co | None:
        """What is known so far; None if that is too little for a result."""

    @abstractmethod
    def result(self) -> ResultT_co:
        """The whole result.

        Raises:
            ProtocolError: if a part of it did not arrive.
        """


class Stream:
    """The parts that the streams of both calls share: the context and the progress."""

    def __init__(self, *, dry_run: bool, asked: Request | None = None, rows: Sequence[str] = ()) -> None:
        self.progress = (0, 0)
        self._dry_run = dry_run
        self._asked_request = asked
        self._rows = tuple(rows)
        self._context: Context | None = None

    def _start(self, message: pb.TraceResponse | pb.InterveneResponse) -> Context:
        if message.HasField("context"):
            if self._context is not None:
                raise ProtocolError("the answer has its context twice")
            self._context = Context(message.context, dry_run=self._dry_run, asked=self._asked_request, rows=self._rows)
        if self._context is None:
            raise ProtocolError("the answer does not begin with its context")
        if message.HasField("progress"):
            self.progress = (message.progress.done, message.progress.total)
        return self._context

    def _require(self) -> Context:
        if self._context is None:
            raise missing("no message at all")
        return self._context
