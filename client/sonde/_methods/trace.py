"""The request of a trace, and the assembler of its answer, for any method."""

from typing import Generic, cast

from sonde._answers.requests import Request
from sonde._answers.results import TraceResult
from sonde._ask.cases import Cases
from sonde._ask.given import flag, refusal
from sonde._ask.indices import index
from sonde._ask.named import PositionLike
from sonde._ask.names import DataTypeName, PoolingName
from sonde._ask.prompts import PromptLike, Targets
from sonde._methods.method import METHODS, Assembly, Kind, Method, Prediction, TraceT
from sonde._wire.asked import record
from sonde._wire.assembly import Stream
from sonde._wire.encoding import encode_data_type, encode_pooling, encode_targets, write_asked, write_position
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb


def trace_request(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike | Cases,
    method: Method[TraceResult] | None,
    *,
    targets: Targets,
    position: PositionLike | None,
    top_k: int,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    reduction: pb.Reduction | None = None,
    dry_run: bool,
) -> pb.TraceRequest:
    """Encode the request of a trace.

    Raises:
        InvalidRequest: if an argument is wrong in a way that does not depend on the model.
    """
    request = pb.TraceRequest(
        targets=encode_targets(targets),
        top_k=index(top_k, "top_k"),
        dry_run=flag(dry_run, "dry_run"),
        reduction=reduction,
    )
    write_asked(prompt, request)
    write_position(position, request)
    if method is not None:
        _kind(method).write(method, request)
    given = "data_type" if data_type is not None else "pooling"
    if (data_type, pooling) != (None, None):
        if not request.HasField("activations"):
            raise InvalidRequest.at(given, "expected method=sonde.Activations(...) with it")
        request.activations.data_type = encode_data_type(data_type)
        request.activations.pooling = encode_pooling(pooling)
    return request


class TraceAssembler(Stream, Generic[TraceT]):
    """Joins the answer to a trace."""

    def __init__(self, request: pb.TraceRequest, method: Method[TraceT] | None, asked: Request | None = None) -> None:
        rows = _kind(method).rows(request) if method is not None and request.HasField("reduction") else ()
        super().__init__(dry_run=request.dry_run, asked=asked or record(request), rows=rows)
        made = Prediction() if method is None else _kind(method).assembly(method, request)
        # A `Kind` connects each method with the assembly of its own result. Types cannot express that.
        self._assembly = cast("Assembly[TraceT]", made)

    def feed(self, message: pb.TraceResponse) -> None:
        """Take the next message."""
        self._assembly.take(self._start(message), message)

    def partial(self) -> TraceT | None:
        """What is known so far; None if that is too little for a result."""
        if self._context is None or not (self._dry_run or self._assembly.ready):
            return None
        return self._assembly.build(self._context)

    def result(self) -> TraceT:
        """The whole result.

        Raises:
            ProtocolError: if a part of it did not arrive.
        """
        context = self._require()
        if not self._dry_run:
            self._assembly.check(context)
        return self._assembly.build(context)


def _kind(method: Method[TraceResult]) -> Kind:
    kind = METHODS.get(type(method))
    if kind is None:
        raise refusal("method", "a method such as sonde.CausalTracing(...)", method)
    return kind
