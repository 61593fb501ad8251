"""The parts that both clients share: the signatures and documentation of their methods, and the connection.

Each function below builds a `Question` from its arguments. `Client` turns these functions into methods that return the
answer, `AsyncClient` into coroutine functions.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, SupportsIndex, TypeVar, cast, get_args, overload

import grpc

from sonde import errors
from sonde._answers.interventions import InterventionResult
from sonde._answers.model import Model
from sonde._answers.results import Result, TraceResult
from sonde._ask.edits import scale as scale_edit
from sonde._ask.given import several
from sonde._ask.plans import Generation, Plan, labels_of
from sonde._ask.prompts import PromptLike, Targets
from sonde._ask.sites import Site, neuron
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import TLS, Connection
from sonde._connection.progress import Progress
from sonde._connection.replicas import Agreement
from sonde._connection.timeouts import DEFAULT, Patience, Timeout
from sonde._methods.interventions import InterveneAssembler, intervene_request
from sonde._methods.method import Method, TraceT
from sonde._methods.token_probability import TokenProbability, TokenProbabilityResult
from sonde._methods.trace import TraceAssembler, trace_request
from sonde._wire.assembly import Assembler
from sonde._wire.model import description
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

ResultT = TypeVar("ResultT", bound=Result)
_ResultT_co = TypeVar("_ResultT_co", bound=Result, covariant=True)
ChannelT = TypeVar("ChannelT")
ModelT = TypeVar("ModelT")


@dataclass(frozen=True)
class Question(Generic[_ResultT_co]):
    """One call: the request, and the assembler of the answer."""

    method: Literal["Trace", "Intervene"]
    request: pb.TraceRequest | pb.InterveneRequest
    assembler: Assembler[Any, _ResultT_co]
    progress: Progress
    timeout: Timeout


# ---------------------------------------------------------------------- the questions


@overload
def trace(
    prompt: PromptLike,
    *,
    targets: Targets = None,
    method: None = None,
    position: int | None = None,
    top_k: int = 10,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceResult]: ...
@overload
def trace(
    prompt: PromptLike,
    *,
    targets: Targets = None,
    method: Method[TraceT],
    position: int | None = None,
    top_k: int = 10,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceT]: ...
def trace(
    prompt: PromptLike,
    *,
    targets: Targets = None,
    method: Method[TraceResult] | None = None,
    position: int | None = None,
    top_k: int = 10,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceResult]:
    """Run the prompt and trace how the model arrives at its prediction.

    Args:
        prompt: text or token ids.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None measures the run's own top
            prediction.
        method: such as `CausalTracing(subject="Eiffel")`; None returns the prediction alone. Each method has a result
            class of its own.
        position: the position where the prediction is read; None means the last.
        top_k: how many of the most probable tokens to return.
        dry_run: only resolve the request and compute its cost.
        progress: True for a line on standard error, or a function that is called with (done, total).
        timeout: seconds; None sets no limit beyond the server's own.

    Raises:
        SondeError: or one of its subclasses; the transport's own exceptions are never raised.
    """
    request = trace_request(prompt, method, targets=targets, position=position, top_k=top_k, dry_run=dry_run)
    return Question("Trace", request, TraceAssembler(request, method), progress, timeout)


def intervene(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike,
    interventions: Plan,
    *,
    targets: Targets = None,
    sources: Sequence[PromptLike] = (),
    position: int | None = None,
    top_k: int = 10,
    kl_divergence: bool = False,
    activations: Site | Iterable[Site] = (),
    generation: Generation | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[InterventionResult]:
    """Run the prompt once unchanged and once per intervention, and measure the effect of each.

    Args:
        prompt: text or token ids.
        interventions: one entry per run: an edit, or a list of edits made together. A mapping names the runs, as in
            `{"no head 9.1": edit}`. Or a `sweep()`.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None measures the unchanged run's own
            top prediction.
        sources: prompts to which patches refer by index. A patch can also contain its prompt.
        position: the position where the prediction is read; None means the last.
        top_k: how many of the most probable tokens to return for each run.
        kl_divergence: also return KL(unchanged || changed) for each run.
        activations: sites to read in each run, after its edits.
        generation: generate tokens in each run.
        dry_run: only resolve the request and compute its cost.
        progress: True for a line on standard error, or a function that is called with (done, total).
        timeout: seconds; None sets no limit beyond the server's own.

    Raises:
        SondeError: or one of its subclasses; the transport's own exceptions are never raised.
    """
    sites = (activations,) if isinstance(activations, Site) else several(activations, "activations", "a list of sites")
    request = intervene_request(
        prompt,
        interventions,
        targets=targets,
        sources=sources,
        position=position,
        top_k=top_k,
        kl_divergence=kl_divergence,
        activations=sites,
        generation=generation,
        dry_run=dry_run,
    )
    return Question(
        "Intervene", request, InterveneAssembler(request, sites, labels_of(interventions)), progress, timeout
    )


def trace_token_probability(
    input_ids: PromptLike, target_idx: SupportsIndex, *, top_k: int = 10
) -> Question[TokenProbabilityResult]:
    """Measure the probability of token `target_idx` after `input_ids`, at the end and after each layer.

    Iterating over the result yields (probability, gradient norms by position) for each layer. The norms are of the
    gradient of the final probability with respect to the output of the layer.
    """
    return trace(input_ids, targets=[target_idx], method=TokenProbability(gradient_norms=True), top_k=top_k)


def intervene_on_neuron(
    input_ids: PromptLike, layer_idx: SupportsIndex, neuron_idx: SupportsIndex, scale: float = 0, *, top_k: int = 10
) -> Question[InterventionResult]:
    """Scale one MLP neuron at all positions. `result.clean` is the unchanged run, `result[0]` the changed one."""
    return intervene(input_ids, [scale_edit(neuron(layer=layer_idx, unit=neuron_idx), scale)], top_k=top_k)


STREAMED = """Like `{name}`, with the same arguments, but yields the partial result after each message.

The last result is complete. The results before it share its memory and have NaN where nothing has arrived yet. Closing
the generator cancels the call.
"""


def describe(asked: Callable[..., Any], build: Callable[..., Question[Any]], owner: str, *, stream: Any = None) -> None:
    """Give a method of a client the name, signature and documentation of the function that builds its question.

    Args:
        asked: the method.
        build: the function that builds its question.
        owner: the name of the client's class.
        stream: the generic type of generator that the method returns; None if it returns the answer.
    """
    name = f"stream_{build.__name__}" if stream else build.__name__
    signature = inspect.signature(build)
    (returns,) = get_args(signature.return_annotation)
    if stream:
        returns = stream[returns]
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    described: Any = asked
    described.__signature__ = signature.replace(
        parameters=[this, *signature.parameters.values()], return_annotation=returns
    )
    described.__annotations__ = {**build.__annotations__, "return": returns}
    described.__name__, described.__qualname__ = name, f"{owner}.{name}"
    described.__doc__ = STREAMED.format(name=build.__name__) if stream else build.__doc__


# ---------------------------------------------------------------------- the connection


class BaseClient(ABC, Generic[ChannelT, ModelT]):
    """A connection to a server. `ModelT` is the model, or an awaitable of it."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TLS | bool = False,
        timeout: float | None = None,
    ) -> None:
        """Open a connection.

        Args:
            address: host and port, or any gRPC target; the default port is 50051. Several hosts and ports can be given
                as a sequence or separated by commas. Their names are looked up at once, which blocks until the name
                server answers. `dns:///NAME:PORT` stands for all addresses of a name, and follows their changes.
            token: sent with each call. Without `tls` it is sent only to this machine.
            tls: True to use TLS and the certificate authorities that come with gRPC, or a `TLS` with certificates.
            timeout: the default timeout of each call, in seconds; None sets no limit beyond the server's own.

        Raises:
            InvalidSettings: if the arguments contradict each other, or one of several addresses cannot be looked up.
        """
        connection = Connection.of(address, token, tls, timeout)
        self._attach(connection, self._open(connection))

    @abstractmethod
    def _open(self, connection: Connection) -> ChannelT:
        """Open a channel."""

    def _attach(self, connection: Connection, channel: ChannelT) -> None:
        """Use this channel. Subclasses with another kind of channel call this instead of `__init__`."""
        self._connection = connection
        self._channel = channel
        self._stub = InspectionServiceStub(cast("grpc.Channel", channel))
        self._known_model: Model | None = None
        self._agreement = Agreement(connection.address, spread=connection.target.spread)
        self._closed = False

    @property
    def model(self) -> ModelT:
        """The hosted model: its layers, heads, components and limits. It is requested only once."""
        return self._get_model()

    def wait_until_serving(self, timeout: float | None = 60.0) -> ModelT:
        """Wait until a server has started and loaded its model. With several servers, returns when one is ready.

        Args:
            timeout: how long to wait, in seconds; None waits forever.

        Raises:
            NotServing: if no server is ready in time.
            InvalidSettings: if the timeout is not greater than 0.
        """
        return self._wait(Patience(timeout))

    @abstractmethod
    def _get_model(self) -> ModelT:
        """Return the model; request it only once."""

    @abstractmethod
    def _wait(self, patience: Patience) -> ModelT:
        """Return the model as soon as a server describes it."""

    def _take_model(self, response: pb.GetModelResponse) -> Model:
        model = description(response)
        self._agreement.check(model)
        self._known_model = model
        return model

    def _request(self, question: Question[Any]) -> pb.TraceRequest | pb.InterveneRequest:
        """The request of a question, for no more of the most probable tokens than a model that is known has."""
        request = question.request
        readout = request if isinstance(request, pb.TraceRequest) else request.readout
        if self._known_model is not None and 0 < self._known_model.vocabulary_size < readout.top_k:
            readout.top_k = self._known_model.vocabulary_size
        return request

    def _error(self, error: grpc.RpcError) -> errors.SondeError:
        return errors.from_call(cast("errors.FailedCall", error), self._connection.address, self._connection.proxy)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(f"the client of {self._connection.address} is closed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.address!r}{', closed' if self._closed else ''})"
