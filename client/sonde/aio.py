"""The asynchronous client of a Sonde server, with the same methods as `Client`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, closing, contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

import grpc

from sonde import _signatures, errors
from sonde._answers.model import Model
from sonde._asking.asking import Request
from sonde._base import BaseClient
from sonde._connection.connection import Connection
from sonde._connection.loops import LoopChannel
from sonde._connection.progress import reporter
from sonde._connection.timeouts import DEFAULT, POLL_SECONDS, Deadline, Patience, Timeout
from sonde._signatures import AnswerT, Question, describe
from sonde.v1 import inspection_pb2 as pb

_Arguments = ParamSpec("_Arguments")


def _answered(
    build: Callable[_Arguments, Question[AnswerT]],
) -> Callable[Concatenate["AsyncClient", _Arguments], Coroutine[Any, Any, AnswerT]]:
    """Make a coroutine method that returns the answer to a question."""

    async def ask(self: "AsyncClient", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> AnswerT:
        return await self._complete(build(*args, **kwargs))

    describe(ask, build, "AsyncClient")
    return ask


def _streamed(
    build: Callable[_Arguments, Question[AnswerT]],
) -> Callable[Concatenate["AsyncClient", _Arguments], AsyncGenerator[AnswerT, None]]:
    """Make a method that yields the answer to a question as it arrives."""

    def ask(
        self: "AsyncClient", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> AsyncGenerator[AnswerT, None]:
        return self._partials(build(*args, **kwargs))

    describe(ask, build, "AsyncClient", stream=AsyncGenerator[AnswerT, None])
    return ask


class AsyncClient(BaseClient[LoopChannel, Awaitable[Model]]):
    """A connection to a Sonde server, for asyncio.

    Leaving an `async with` block closes it and cancels running calls.

        async with sonde.AsyncClient("localhost:50051") as client:
            trace = await client.trace("The Eiffel Tower is in the city of", targets=[" Paris"])

    Nothing is sent before the first call. A client can be created outside an event loop; it then belongs to the loop of
    its first call. If several servers host the same model, calls take turns among those that are serving:

        client = sonde.AsyncClient(["gpu1:50051", "gpu2:50051"])
    """

    trace = _answered(_signatures.trace)
    intervene = _answered(_signatures.intervene)
    tokenize = _answered(_signatures.tokenize)
    stream_trace = _streamed(_signatures.trace)
    stream_intervene = _streamed(_signatures.intervene)
    trace_token_probability = _answered(_signatures.trace_token_probability)
    intervene_on_neuron = _answered(_signatures.intervene_on_neuron)

    async def close(self) -> None:
        """Close the connection and cancel running calls."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ calls

    def _open(self, connection: Connection) -> LoopChannel:
        # Read now, so that a certificate that is not there is told of where the client is made.
        credentials = connection.credentials()

        def opened() -> grpc.aio.Channel:
            if credentials is None:
                return grpc.aio.insecure_channel(connection.target.name, connection.options)
            return grpc.aio.secure_channel(connection.target.name, credentials, connection.options)

        return LoopChannel(opened, connection.address)

    async def _get_model(self) -> Model:
        return self._known_model or await self._describe(DEFAULT)

    async def _wait(self, patience: Patience) -> Model:
        while True:
            try:
                return await self._describe(patience.seconds)
            except (errors.NotServing, errors.DeadlineExceeded) as error:
                patience.failed(error)
            await asyncio.sleep(POLL_SECONDS)

    async def _describe(self, timeout: Timeout) -> Model:  # noqa: ASYNC109 - the server enforces it
        self._check_open()
        asked: Any = self._stub.GetModel  # Over a channel of grpc.aio, the stub returns awaitables.
        with self._own_errors():
            response = await asked(
                pb.GetModelRequest(), timeout=self._connection.seconds(timeout), metadata=self._connection.metadata
            )
        return self._take_model(response)

    async def _messages(self, method: str, request: Request, seconds: float | None) -> AsyncGenerator[Any, None]:
        self._check_open()
        call = getattr(self._stub, method)(request, timeout=seconds, metadata=self._connection.metadata)
        try:
            with self._own_errors():
                async for message in call:
                    yield message
        finally:
            # Also after the task is cancelled, an error in the caller's progress function, and an early exit.
            call.cancel()

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Raise this package's errors for those of the transport."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            # gRPC also raises this for calls that close() cancelled. Only a task that was cancelled itself may see it.
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                self._check_open()
            raise

    async def _fed(self, question: Question[Any]) -> AsyncGenerator[None, None]:
        """Feed the answers to the question, message by message. Of a dataset, ask for what is lacking."""
        asking, deadline = question.asking, Deadline(self._connection.seconds(question.timeout))
        if asking.needs_limits:
            await self._get_model()
        with closing(reporter(question.progress)) as report:
            while (request := asking.request(self._limits)) is not None:
                try:
                    answer = self._messages(question.method, self._fitted(request), deadline.seconds)
                    async with aclosing(answer) as messages:
                        async for message in messages:
                            asking.feed(message)
                            if asking.steps.total:
                                report.update(asking.steps)
                            yield
                    asking.end()
                except errors.NotServing as error:
                    await asyncio.sleep(asking.broken(error))
                yield

    async def _complete(self, question: Question[AnswerT]) -> AnswerT:
        async with aclosing(self._fed(question)) as steps:
            async for _ in steps:
                pass
        result = question.asking.result()
        self._agreement.check(result.provenance)
        return result

    async def _partials(self, question: Question[AnswerT]) -> AsyncGenerator[AnswerT, None]:
        async with aclosing(self._fed(question)) as steps:
            async for _ in steps:
                known = question.asking.news()
                if known is not None:
                    self._agreement.check(known.provenance)
                    yield known
        question.asking.result()  # Raises if the last partial result was not complete.
