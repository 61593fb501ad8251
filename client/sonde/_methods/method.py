"""What the methods of a trace have in common: how one is asked, how its answer is joined, and what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sonde._answers.results import TraceResult
from sonde._wire.context import Context
from sonde.v1 import inspection_pb2 as pb

TraceT = TypeVar("TraceT", bound=TraceResult)
ResultT_co = TypeVar("ResultT_co", bound=TraceResult, covariant=True)


class Method(Generic[ResultT_co]):
    """How a trace looks at the run. The parameter is the class of its result."""

    __slots__ = ()


class Assembly(ABC, Generic[ResultT_co]):
    """Joins what one method adds to the context of an answer."""

    @abstractmethod
    def take(self, context: Context, message: pb.TraceResponse) -> None:
        """Take the next message.

        Raises:
            ProtocolError: if it does not fit the messages before it.
        """

    @property
    def ready(self) -> bool:
        """Whether enough has come to build a partial result."""
        return True

    @abstractmethod
    def check(self, context: Context) -> None:
        """Refuse an answer that is not whole.

        Raises:
            ProtocolError: if a part is missing; the message names it.
        """

    @abstractmethod
    def build(self, context: Context) -> ResultT_co:
        """The result, as far as it is known."""


class Prediction(Assembly[TraceResult]):
    """The answer without a method: the context alone."""

    def take(self, context: Context, message: pb.TraceResponse) -> None:
        """Take nothing: all of it is in the context."""

    def check(self, context: Context) -> None:
        """Refuse nothing, as the context has been checked."""

    def build(self, context: Context) -> TraceResult:
        """The prediction alone."""
        return TraceResult(**context.common())


@dataclass(frozen=True)
class Kind:
    """How one kind of method is asked, answered and saved."""

    write: Callable[[Any, pb.TraceRequest], None]
    """Writes a method into the request of a trace."""
    assembly: Callable[[Any, pb.TraceRequest], Assembly[TraceResult]]
    """Makes, for a method and its request, what joins the answer."""
    parts: tuple[type[Any], ...]
    """The dataclasses that its saved results are made of, beside those that all results share."""
