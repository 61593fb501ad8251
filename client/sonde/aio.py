"""The asynchronous client: the same surface as `Client`, with await."""

# ruff: noqa: ASYNC109 - a timeout is the call's deadline, which the server is told and keeps.

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Self, SupportsIndex, TypeVar, cast, overload

import grpc

from sonde import errors
from sonde._answers.interventions import InterventionResult
from sonde._answers.model import Model, from_response
from sonde._answers.results import Result
from sonde._ask.edits import scale as scale_edit
from sonde._ask.plans import Generation, Plan
from sonde._ask.prompts import PromptLike
from sonde._ask.sites import Site, neuron
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import ATTEMPT_SECONDS, DEFAULT, POLL_SECONDS, TLS, Connection, Timeout
from sonde._connection.progress import Progress, reporter
from sonde._connection.replicas import Agreement
from sonde._methods.interventions import InterveneAssembler
from sonde._methods.methods import Method, TokenProbability
from sonde._methods.traces import TokenProbabilityResult, TraceResult
from sonde._wire.assembly import Assembler
from sonde._wire.encoding import intervene_request
from sonde.client import Targets, TraceT, tracing
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")
_ResultT = TypeVar("_ResultT", bound=Result)


class AsyncClient:
    """A connection to a Sonde server, for asyncio. `async with` closes it, which cancels what still runs.

        async with sonde.AsyncClient("localhost:50051") as client:
            trace = await client.trace("The Eiffel Tower is in the city of", targets=[" Paris"])

    Nothing is sent before the first question. Where several servers host one model, questions go to each in turn, past
    those that do not serve:

        client = sonde.AsyncClient(["gpu1:50051", "gpu2:50051"])
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
                in a sequence or with commas, are looked up now, which waits for the name server; `dns:///NAME:PORT` is
                every address that the name has, at any time.
            token: sent with every call; without `tls` only to this machine.
            tls: True to trust the usual authorities, or a `TLS` with certificates.
            timeout: seconds for every call that names none itself; None leaves it to the server.

        Raises:
            InvalidSettings: if these contradict each other, or one of several addresses cannot be looked up.
        """
        connection = Connection.of(address, token, tls, timeout)
        credentials, options = connection.credentials(), connection.options
        self._attach(
            connection,
            grpc.aio.insecure_channel(connection.target.name, options)
            if credentials is None
            else grpc.aio.secure_channel(connection.target.name, credentials, options),
        )

    def _attach(self, connection: Connection, channel: grpc.aio.Channel) -> None:
        """Ask over this channel; whoever brings another kind of channel begins here."""
        self._connection = connection
        self._channel = channel
        self._stub = InspectionServiceStub(channel)
        self._model: Model | None = None
        self._agreement = Agreement(connection.address, spread=connection.target.spread)
        self._calls: set[grpc.aio.Call] = set()
        self._closed = False

    @property
    def model(self) -> Awaitable[Model]:
        """The hosted model, to be awaited: its layers, heads, components and limits. Asked for once, of one server."""
        return self._known_model()

    async def wait_until_serving(self, timeout: float | None = 60.0) -> Model:
        """Wait for a server that is starting or loading its model; of several, for the first.

        Raises:
            NotServing: if it still does not serve after `timeout` seconds; None waits for ever.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                self._model = await self._describe(min(max(end - time.monotonic(), POLL_SECONDS), ATTEMPT_SECONDS))
            except (errors.NotServing, errors.DeadlineExceeded) as error:
                if time.monotonic() + POLL_SECONDS >= end:
                    raise errors.NotServing(str(error), reason=error.reason, metadata=error.metadata) from None
                await asyncio.sleep(POLL_SECONDS)
            else:
                return self._model

    @overload
    async def trace(
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
    async def trace(
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
    async def trace(
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
        return await self._complete(self._stub.Trace, request, assembler, progress, timeout)

    async def intervene(  # noqa: PLR0913 - what one request can say, by keyword
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
        return await self._complete(self._stub.Intervene, request, assembler, progress, timeout)

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
    ) -> AsyncGenerator[TraceResult, None]: ...
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
    ) -> AsyncGenerator[TraceT, None]: ...
    def stream_trace(
        self,
        prompt: PromptLike,
        *,
        targets: Targets = None,
        method: Method[TraceResult] | None = None,
        position: int | None = None,
        top_k: int = 10,
        timeout: Timeout = DEFAULT,
    ) -> AsyncGenerator[TraceResult, None]:
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
    ) -> AsyncGenerator[InterventionResult, None]:
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

    async def trace_token_probability(self, input_ids: PromptLike, target_idx: SupportsIndex) -> TokenProbabilityResult:
        """The probability of token `target_idx` after `input_ids`: in the end, and read after each layer.

        Iterating over the result gives, layer by layer, (probability, gradient norms by position). The norms are those
        of the final probability's gradient with respect to what leaves the layer.
        """
        return await self.trace(input_ids, targets=[target_idx], method=TokenProbability(gradient_norms=True))

    async def intervene_on_neuron(
        self, input_ids: PromptLike, layer_idx: SupportsIndex, neuron_idx: SupportsIndex, scale: float = 0
    ) -> InterventionResult:
        """Scale one MLP neuron at all positions: `result[0]` is the changed prediction, `result.clean` the other."""
        return await self.intervene(input_ids, [scale_edit(neuron(layer=layer_idx, unit=neuron_idx), scale)])

    async def close(self) -> None:
        """Close the connection. Calls that still run are cancelled."""
        self._closed = True
        # Older versions of grpcio find only those that a task awaits directly.
        for call in tuple(self._calls):
            call.cancel()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection.address!r}{', closed' if self._closed else ''})"

    # ------------------------------------------------------------------ calls

    async def _known_model(self) -> Model:
        if self._model is None:
            self._model = await self._describe(DEFAULT)
        return self._model

    async def _describe(self, timeout: Timeout) -> Model:
        self._check_open()
        try:
            response = await self._stub.GetModel(
                pb.GetModelRequest(), timeout=self._connection.seconds(timeout), metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        model = from_response(response)
        self._agreement.check(model)
        return model

    async def _messages(
        self, method: "grpc.aio.UnaryStreamMultiCallable[_RequestT, _ResponseT]", request: _RequestT, timeout: Timeout
    ) -> AsyncGenerator[_ResponseT, None]:
        self._check_open()
        seconds = self._connection.seconds(timeout)
        call = method(request, timeout=seconds, metadata=self._connection.metadata)
        self._calls.add(call)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            # gRPC says this of a call that close() ended, too; only what the task's owner cancelled is asyncio's.
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                self._check_open()
            raise
        finally:
            # Also when the task is cancelled, on an error in the caller's progress function and on leaving early.
            call.cancel()
            self._calls.discard(call)

    async def _partials(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        assembler: Assembler[_ResponseT, _ResultT],
        timeout: Timeout,
    ) -> AsyncGenerator[_ResultT, None]:
        async with aclosing(self._messages(method, request, timeout)) as messages:
            async for message in messages:
                assembler.feed(message)
                known = assembler.partial()
                if known is not None:
                    self._agreement.check(known.provenance)
                    yield known
        assembler.result()  # The last one given must have been the whole.

    async def _complete(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[_RequestT, _ResponseT]",
        request: _RequestT,
        assembler: Assembler[_ResponseT, _ResultT],
        progress: Progress,
        timeout: Timeout,
    ) -> _ResultT:
        report = reporter(progress)
        with closing(report):
            async with aclosing(self._messages(method, request, timeout)) as messages:
                async for message in messages:
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
