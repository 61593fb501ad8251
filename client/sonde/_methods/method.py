"""The parts that all methods of a trace share.

To add a method, write a file like `token_probability.py` with its result, its request, and a `Kind` that connects them.
The file registers the method when it is imported, and `sonde` imports every method to export it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from sonde._answers.results import TraceResult
from sonde._wire.context import Context
from sonde._wire.encoding import decode_named
from sonde.v1 import inspection_pb2 as pb

TraceT = TypeVar("TraceT", bound=TraceResult)
ResultT_co = TypeVar("ResultT_co", bound=TraceResult, covariant=True)


class Method(Generic[ResultT_co]):
    """The base class of methods. The type parameter is the class of the result."""

    __slots__ = ()


class Assembly(ABC, Generic[ResultT_co]):
    """Joins the part of an answer that one method adds to the context."""

    @abstractmethod
    def take(self, context: Context, message: pb.TraceResponse) -> None:
        """Take the next message.

        Raises:
            ProtocolError: if it contradicts the messages before it.
        """

    @property
    def ready(self) -> bool:
        """Whether enough has arrived for a partial result."""
        return True

    @abstractmethod
    def check(self, context: Context) -> None:
        """Check that the answer is complete.

        Raises:
            ProtocolError: if a part is missing; the message names it.
        """

    @abstractmethod
    def build(self, context: Context) -> ResultT_co:
        """Build the result from what has arrived."""


class Prediction(Assembly[TraceResult]):
    """The answer to a trace without a method: the context alone."""

    def take(self, context: Context, message: pb.TraceResponse) -> None:
        """Do nothing: the context has everything."""

    def check(self, context: Context) -> None:
        """Do nothing: the context has been checked."""

    def build(self, context: Context) -> TraceResult:
        """Build a result with the prediction alone."""
        return TraceResult(**context.common())


@dataclass(frozen=True)
class Kind:
    """How requests of one method are encoded, and how its results are joined and saved."""

    write: Callable[[Any, pb.TraceRequest], None]
    """Writes a method into a request."""
    assembly: Callable[[Any, pb.TraceRequest], Assembly[TraceResult]]
    """Creates the assembly for a method and its request."""
    parts: tuple[type[Any], ...]
    """The dataclasses in its saved results, apart from those that all results share."""
    rows: Callable[[pb.TraceRequest], tuple[str, ...]] = field(default=lambda _: ())
    """The names of the rows that stand for positions where cases are reduced; empty: it has no positions."""


def row_names(numbers: Sequence[int], names: Sequence[pb.NamedPositions], otherwise: Sequence[str]) -> tuple[str, ...]:
    """The rows of a reduction: what the request lists, or else the given ones."""
    return tuple(map(str, numbers)) or tuple(str(decode_named(name)) for name in names) or tuple(otherwise)


METHODS: Final[dict[type[Method[Any]], Kind]] = {}
"""By class, the methods that have been registered. They are all here once `sonde` is imported."""


def register(method: type[Method[Any]], kind: Kind) -> None:
    """Enter a method, so that a client can ask it and its results can be loaded."""
    METHODS[method] = kind
