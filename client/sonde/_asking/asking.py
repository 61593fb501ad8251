"""What a client does with a question, whether it has one prompt or many: send a request, feed the answer, ask on."""

from abc import abstractmethod
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from sonde._answers.model import Limits
from sonde._connection.progress import Steps
from sonde._wire.assembly import Assembler
from sonde.errors import NotServing
from sonde.v1 import inspection_pb2 as pb

AnswerT_co = TypeVar("AnswerT_co", covariant=True)
Request: TypeAlias = pb.TraceRequest | pb.InterveneRequest
Response: TypeAlias = pb.TraceResponse | pb.InterveneResponse


class Asking(Protocol[AnswerT_co]):
    """A question on its way: which request comes next, and what has been answered."""

    needs_limits: bool
    """Whether the requests depend on the limits of the server."""

    def request(self, limits: Limits | None) -> Request | None:
        """The next request; None once everything has been answered."""

    def feed(self, message: Any) -> None:
        """Take the next message of its answer."""

    def end(self) -> None:
        """Take note that the answer has ended without an error."""

    @abstractmethod
    def broken(self, error: NotServing) -> float:
        """Take note that the server is gone; return how long to wait, in seconds, before asking for what is lacking.

        Raises:
            NotServing: if it makes no sense to ask again.
        """

    @property
    @abstractmethod
    def steps(self) -> Steps:
        """How much is done."""

    def news(self) -> AnswerT_co | None:
        """What is known so far, if it is more than before."""

    @abstractmethod
    def result(self) -> AnswerT_co:
        """The whole answer.

        Raises:
            ProtocolError: if a part of it did not arrive.
        """


class OnePrompt(Asking[AnswerT_co]):
    """The question about a single prompt: one request, which is not repeated."""

    needs_limits = False

    def __init__(self, request: Request, assembler: Assembler[Any, AnswerT_co]) -> None:
        self._request: Request | None = request
        self._assembler = assembler
        self._fresh = False

    def request(self, limits: Limits | None) -> Request | None:  # noqa: ARG002 - the server judges a single prompt
        """The request, once."""
        asked, self._request = self._request, None
        return asked

    def feed(self, message: Any) -> None:
        """Take the next message."""
        self._assembler.feed(message)
        self._fresh = True

    def end(self) -> None:
        """Do nothing: `result` checks that the answer is complete."""

    def broken(self, error: NotServing) -> float:
        """Raise the error: the transport has tried again, as far as that is safe."""
        raise error

    @property
    def steps(self) -> Steps:
        """How much is done."""
        return Steps(*self._assembler.progress)

    def news(self) -> AnswerT_co | None:
        """What is known so far, after each message."""
        fresh, self._fresh = self._fresh, False
        return self._assembler.partial() if fresh else None

    def result(self) -> AnswerT_co:
        """The whole answer."""
        return self._assembler.result()


PAUSES: Final = (0.2, 0.6, 1.8, 5.0, 10.0, 20.0, 20.0)
"""The pauses before asking again, in seconds: in all about as long as a server takes to start again."""


class Patience:
    """Counts attempts that brought nothing. Each time something is answered, it begins anew."""

    def __init__(self) -> None:
        self._failed: int | None = None
        """How many attempts have failed in a row; None before anything was answered at all."""

    def heard(self) -> None:
        """A message has come."""
        self._failed = self._failed or 0

    def answered(self) -> None:
        """Something has been answered in full."""
        self._failed = 0

    def failed(self, error: NotServing) -> float:
        """The pause before the next attempt.

        Raises:
            NotServing: if there was no answer at all (gRPC has tried several times), or too few lately.
        """
        if self._failed is None or self._failed >= len(PAUSES):
            raise error
        self._failed += 1
        return PAUSES[self._failed - 1]
