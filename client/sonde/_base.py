"""What both clients share: the questions with their signatures and documentation, and the connection's life.

A question is a function that builds a `Question` from its arguments. Each client turns these functions into methods of
its own: `Client` into ones that return the answer, `AsyncClient` into coroutine functions.
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
from sonde._ask.plans import Generation, Plan
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
    """One call: what is sent, and what joins the answer."""

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
    """Run the prompt and report how its prediction comes about.

    Args:
        prompt: text, or token ids.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None: the run's own top prediction.
        method: how to look: `CausalTracing`, `TokenProbability`, `AttributionPatching` or `Activations`; None: the
            prediction alone. The result is the method's own class.
        position: where the prediction is read; None: the last.
        top_k: how many of the most probable tokens come with it.
        dry_run: only resolve the request and count what it would cost.
        progress: True for a line on standard error, or a function given (done, total).
        timeout: seconds; None for the server's own limit.

    Raises:
        SondeError: one of its kinds; never the transport's.
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
    """Run the prompt once unchanged and once per intervention, and report what each did.

    Args:
        prompt: text, or token ids.
        interventions: a list, each entry an edit or a list of edits made together; or a `sweep()`.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None: the unchanged run's own top
            prediction.
        sources: the prompts that patches name by index. A patch can also name its prompt itself.
        position: where the prediction is read; None: the last.
        top_k: how many of the most probable tokens come with every run.
        kl_divergence: also KL(unchanged || changed) of every run.
        activations: sites to read in every run, after its edits.
        generation: continue every run.
        dry_run: only resolve the request and count what it would cost.
        progress: True for a line on standard error, or a function given (done, total).
        timeout: seconds; None for the server's own limit.

    Raises:
        SondeError: one of its kinds; never the transport's.
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
    return Question("Intervene", request, InterveneAssembler(request, sites), progress, timeout)


def trace_token_probability(input_ids: PromptLike, target_idx: SupportsIndex) -> Question[TokenProbabilityResult]:
    """The probability of token `target_idx` after `input_ids`: in the end, and read after each layer.

    Iterating over the result gives, layer by layer, (probability, gradient norms by position). The norms are those
    of the final probability's gradient with respect to what leaves the layer.
    """
    return trace(input_ids, targets=[target_idx], method=TokenProbability(gradient_norms=True))


def intervene_on_neuron(
    input_ids: PromptLike, layer_idx: SupportsIndex, neuron_idx: SupportsIndex, scale: float = 0
) -> Question[InterventionResult]:
    """Scale one MLP neuron at all positions: `result[0]` is the changed prediction, `result.clean` the other."""
    return intervene(input_ids, [scale_edit(neuron(layer=layer_idx, unit=neuron_idx), scale)])


STREAMED = """Like `{name}`, with the same arguments, but yields what is known after every message.

The last result is complete; in those before it, arrays are NaN where nothing has arrived yet. All of them share memory.
Closing the generator cancels the call.
"""


def describe(asked: Callable[..., Any], build: Callable[..., Question[Any]], owner: str, *, stream: Any = None) -> None:
    """Give a client's method the name, the signature and the documentation of the function that builds its question.

    Args:
        asked: the method.
        build: the function.
        owner: the name of the client's class.
        stream: the generic class of generators that the method returns; None: it returns the answer.
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
    """A connection to a server. `ModelT` is the model, or what is awaited to get it."""

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
            address: host and port, or any gRPC target; the port is 50051 if it is left out. Several of host and port,
                in a sequence or with commas, are looked up now, which waits for the name server; `dns:///NAME:PORT` is
                every address that the name has, at any time.
            token: sent with every call; without `tls` only to this machine.
            tls: True to trust the usual authorities, or a `TLS` with certificates.
            timeout: seconds for every call that names none itself; None leaves it to the server.

        Raises:
            InvalidSettings: if these contradict each other, or one of several addresses cannot be looked up.
        """
        connection = Connection.of(address, token, tls, timeout)
        self._attach(connection, self._open(connection))

    @abstractmethod
    def _open(self, connection: Connection) -> ChannelT:
        """Open a channel."""

    def _attach(self, connection: Connection, channel: ChannelT) -> None:
        """Ask over this channel; a client with another kind of channel begins here."""
        self._connection = connection
        self._channel = channel
        self._stub = InspectionServiceStub(cast("grpc.Channel", channel))
        self._known_model: Model | None = None
        self._agreement = Agreement(connection.address, spread=connection.target.spread)
        self._closed = False

    @property
    def model(self) -> ModelT:
        """The hosted model: its layers, heads, components and limits. Asked for once, of one server."""
        return self._get_model()

    def wait_until_serving(self, timeout: float | None = 60.0) -> ModelT:
        """Wait for a server that is starting or loading its model; of several, for the first.

        Raises:
            NotServing: if it still does not serve after `timeout` seconds; None waits for ever.
            InvalidSettings: for a timeout that is not above 0.
        """
        return self._wait(Patience(timeout))

    @abstractmethod
    def _get_model(self) -> ModelT:
        """The model, which is asked for once."""

    @abstractmethod
    def _wait(self, patience: Patience) -> ModelT:
        """The model, as soon as a server describes it."""

    def _take_model(self, response: pb.GetModelResponse) -> Model:
        model = description(response)
        self._agreement.check(model)
        self._known_model = model
        return model

    def _error(self, error: grpc.RpcError) -> errors.SondeError:
        return errors.from_call(cast("errors.FailedCall", error), self._connection.address, self._connection.proxy)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(f"the client of {self._connection.address} is closed")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.address!r}{', closed' if self._closed else ''})"
