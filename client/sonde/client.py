"""The client: two questions to a model behind a gRPC address."""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self, SupportsIndex, TypeAlias, TypeVar, cast, overload

import grpc
from grpc.experimental import ChannelOptions

from sonde import errors
from sonde._answers.interventions import InterventionResult
from sonde._answers.model import Model, from_response
from sonde._answers.results import Result
from sonde._ask.edits import scale as scale_edit
from sonde._ask.plans import Generation, Plan
from sonde._ask.prompts import PromptLike, TargetLike
from sonde._ask.sites import Site, neuron
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import ATTEMPT_SECONDS, DEFAULT, POLL_SECONDS, TLS, Connection, Timeout
from sonde._connection.progress import Progress, reporter
from sonde._connection.replicas import Agreement
from sonde._methods.interventions import InterveneAssembler
from sonde._methods.methods import Method, TokenProbability
from sonde._methods.trace_assembly import TraceAssembler
from sonde._methods.traces import TokenProbabilityResult, TraceResult
from sonde._wire.assembly import Assembler
from sonde._wire.encoding import intervene_request, trace_request
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")
_ResultT = TypeVar("_ResultT", bound=Result)
TraceT = TypeVar("TraceT", bound=TraceResult)
Targets: TypeAlias = TargetLike | Sequence[TargetLike] | None


class Client:
    """A connection to a Sonde server. Threads may share it; `with` closes it, which cancels what still runs.

        with sonde.Client("localhost:50051") as client:
            trace = client.trace("The Eiffel Tower is in the city of", targets=[" Paris"])

    Nothing is sent before the first question. Where several servers host one model, questions go to each in turn, past
    those that do not serve:

        client = sonde.Client(["gpu1:50051", "gpu2:50051"])
    """

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
                in a sequence or with commas, are looked up now; `dns:///NAME:PORT` is every address
                that the name has, at any time.
            token: sent with every call; without `tls` only to this machine.
            tls: True to trust the usual authorities, or a `TLS` with certificates.
            timeout: seconds for every call that names none itself; None leaves it to the server.

        Raises:
            InvalidSettings: if these contradict each other, or one of several addresses cannot be looked up.
        """
        connection = Connection.of(address, token, tls, timeout)
        # gRPC's usual reader of streams waits for ever, beyond any deadline, for a call that is being tried again while
        # its server goes away (seen in 1.85.1); this one, which needs no thread of its own either, does not.
        options = [*connection.options, (ChannelOptions.SingleThreadedUnaryStream, 1)]
        credentials = connection.credentials()
        self._attach(
            connection,
            grpc.insecure_channel(connection.target.name, options)
            if credentials is None
            else grpc.secure_channel(connection.target.name, credentials, options),
        )

    def _attach(self, connection: Connection, channel: grpc.Channel) -> None:
        """Ask over this channel; whoever brings another kind of channel begins here."""
        self._connection = connection
        self._channel = channel
        self._stub = InspectionServiceStub(channel)
        self._model: Model | None = None
        self._agreement = Agreement(connection.address, spread=connection.target.spread)
        self._closed = False

    @property
    def model(self) -> Model:
        """The hosted model: its layers, heads, components and limits. Asked for once, of one server."""
        if self._model is None:
            self._model = self._describe(DEFAULT)
        return self._model

    def wait_until_serving(self, timeout: float | None = 60.0) -> Model:
        """Wait for a server that is starting or loading its model; of several, for the first.

        Raises:
            NotServing: if it still does not serve after `timeout` seconds; None waits for ever.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                self._model = self._describe(min(max(end - time.monotonic(), POLL_SECONDS), ATTEMPT_SECONDS))
            except (errors.NotServing, errors.DeadlineExceeded) as error:
                if time.monotonic() + POLL_SECONDS >= end:
                    raise errors.NotServing(str(error), reason=error.reason, metadata=error.metadata) from None
                time.sleep(POLL_SECONDS)
            else:
                return self._model

    @overload
    def trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: None = None,
        position: int | None = None,
        top_k: int = 10,
        dry_run: bool = False,
        progress: Progress = False,
        timeout: Timeout = DEFAULT,
    ) -> TraceResult: ...
    @overload
    def trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: Method[TraceT],
        position: int | None = None,
        top_k: int = 10,
        dry_run: bool = False,
        progress: Progress = False,
        timeout: Timeout = DEFAULT,
    ) -> TraceT: ...
    def trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: Method[TraceResult] | None = None,
        position: int | None = None,
        top_k: int = 10,
        dry_run: bool = False,
        progress: Progress = False,
        timeout: Timeout = DEFAULT,
    ) -> TraceResult:
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
        request, assembler = tracing(prompt, method, targets, position, top_k, dry_run=dry_run)
        return self._complete(self._stub.Trace, request, assembler, progress, timeout)

    def intervene(  # noqa: PLR0913 - what one request can say, by keyword
        self,
        prompt: PromptLike,
        interventions: Plan,
        *,
        targets: Targets = None,
        sources: Sequence[PromptLike] = (),
        position: int | None = None,
        top_k: int = 10,
        kl_divergence: bool = False,
        activations: Sequence[Site] = (),
        generation: Generation | None = None,
        dry_run: bool = False,
        progress: Progress = False,
        timeout: Timeout = DEFAULT,
    ) -> InterventionResult:
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
        request = intervene_request(
            prompt,
            interventions,
            targets=targets,
            sources=sources,
            position=position,
            top_k=top_k,
            kl_divergence=kl_divergence,
            activations=activations,
            generation=generation,
            dry_run=dry_run,
        )
        assembler = InterveneAssembler(request, activations)
        return self._complete(self._stub.Intervene, request, assembler, progress, timeout)

    @overload
    def stream_trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: None = None,
        position: int | None = None,
        top_k: int = 10,
        timeout: Timeout = DEFAULT,
    ) -> Generator[TraceResult, None, None]: ...
    @overload
    def stream_trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: Method[TraceT],
        position: int | None = None,
        top_k: int = 10,
        timeout: Timeout = DEFAULT,
    ) -> Generator[TraceT, None, None]: ...
    def stream_trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: Method[TraceResult] | None = None,
        position: int | None = None,
        top_k: int = 10,
        timeout: Timeout = DEFAULT,
    ) -> Generator[TraceResult, None, None]:
        """As `trace`, giving what is known after every message; the last is the whole. Closing it cancels the call."""
        request, assembler = tracing(prompt, method, targets, position, top_k)
        return self._partials(self._stub.Trace, request, assembler, timeout)

    def stream_intervene(  # noqa: PLR0913 - what one request can say, by keyword
        self,
        prompt: PromptLike,
        interventions: Plan,
        *,
        targets: Targets = None,
        sources: Sequence[PromptLike] = (),
        position: int | None = None,
        top_k: int = 10,
        kl_divergence: bool = False,
        activations: Sequence[Site] = (),
        generation: Generation | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Generator[InterventionResult, None, None]:
        """As `intervene`, giving what is known after every message, NaN where nothing has come yet.

        The last is the whole. All of them look at the same memory. Closing the generator cancels the call.
        """
        request = intervene_request(
            prompt,
            interventions,
            targets=targets,
            sources=sources,
            position=position,
            top_k=top_k,
            kl_divergence=kl_divergence,
            activations=activations,
            generation=generation,
            dry_run=False,
        )
        return self._partials(self._stub.Intervene, request, InterveneAssembler(request, activations), timeout)

    def trace_token_probability(self, input_ids: PromptLike, target_idx: SupportsIndex) -> TokenProbabilityResult:
        """The probability of token `target_idx` after `input_ids`: in the end, and read after each layer.

        Iterating over the result gives, layer by layer, (probability, gradient norms by position). The norms are those
        of the final probability's gradient with respect to what leaves the layer.
        """
        return self.trace(input_ids, targets=[target_idx], method=TokenProbability(gradient_norms=True))

    def intervene_on_neuron(
        self, input_ids: PromptLike, layer_idx: SupportsIndex, neuron_idx: SupportsIndex, scale: float = 0
    ) -> InterventionResult:
        """Scale one MLP neuron at all positions: `result[0]` is the changed prediction, `result.clean` the other."""
        return self.intervene(input_ids, [scale_edit(neuron(layer=layer_idx, unit=neuron_idx), scale)])

    def close(self) -> None:
        """Close the connection. Calls that still run are cancelled."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._connection.address!r}{', closed' if self._closed else ''})"

    # ------------------------------------------------------------------ calls

    def _describe(self, timeout: Timeout) -> Model:
        self._check_open()
        try:
            response = self._stub.GetModel(
                pb.GetModelRequest(), timeout=self._connection.seconds(timeout), metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        model = from_response(response)
        self._agreement.check(model)
        return model

    def _messages(
        self, method: "grpc.UnaryStreamMultiCallable[_RequestT, _ResponseT]", request: _RequestT, timeout: Timeout
    ) -> Generator[_ResponseT, None, None]:
        self._check_open()
        seconds = self._connection.seconds(timeout)
        call = method(request, timeout=seconds, metadata=self._connection.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            # Also on Ctrl-C, on an error in the caller's progress function and when a generator is dropped.
            call.cancel()

    def _partials(
        self,
        method: "grpc.UnaryStreamMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        assembler: Assembler[_ResponseT, _ResultT],
        timeout: Timeout,
    ) -> Generator[_ResultT, None, None]:
        with closing(self._messages(method, request, timeout)) as messages:
            for message in messages:
                assembler.feed(message)
                known = assembler.partial()
                if known is not None:
                    self._agreement.check(known.provenance)
                    yield known
        assembler.result()  # The last one given must have been the whole.

    def _complete(
        self,
        method: "grpc.UnaryStreamMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        assembler: Assembler[_ResponseT, _ResultT],
        progress: Progress,
        timeout: Timeout,
    ) -> _ResultT:
        report = reporter(progress)
        with closing(report), closing(self._messages(method, request, timeout)) as messages:
            for message in messages:
                assembler.feed(message)
                done, total = assembler.progress
                if total:
                    report.update(done, total)
        result = assembler.result()
        self._agreement.check(result.provenance)
        return result

    def _error(self, error: grpc.RpcError) -> errors.SondeError:
        return errors.from_call(cast("errors.FailedCall", error), self._connection.address)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Cancelled(f"the client of {self._connection.address} is closed")


def tracing(
    prompt: PromptLike,
    method: Method[TraceResult] | None,
    targets: Targets,
    position: int | None,
    top_k: int,
    *,
    dry_run: bool = False,
) -> tuple[pb.TraceRequest, TraceAssembler]:
    """The request of a trace, and what joins its answer."""
    request = trace_request(prompt, method, targets=targets, position=position, top_k=top_k, dry_run=dry_run)
    return request, TraceAssembler(request, method)
