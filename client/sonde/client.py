"""The client of a Sonde server."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

import grpc
from grpc.experimental import ChannelOptions

from sonde import _signatures, errors
from sonde._answers.model import Model
from sonde._asking.asking import Request
from sonde._base import BaseClient
from sonde._connection.connection import Connection
from sonde._connection.progress import reporter
from sonde._connection.timeouts import DEFAULT, POLL_SECONDS, Deadline, Patience, Timeout
from sonde._signatures import AnswerT, Question, describe
from sonde.v1 import inspection_pb2 as pb

_Arguments = ParamSpec("_Arguments")


def _answered(
    build: Callable[_Arguments, Question[AnswerT]],
) -> Callable[Concatenate["Client", _Arguments], AnswerT]:
    """Make a method that returns the answer to a question."""

    def ask(self: "Client", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> AnswerT:
        return self._complete(build(*args, **kwargs))

    describe(ask, build, "Client")
    return ask


def _streamed(
    build: Callable[_Arguments, Question[AnswerT]],
) -> Callable[Concatenate["Client", _Arguments], Generator[AnswerT, None, None]]:
    """Make a method that yields the answer to a question as it arrives."""

    def ask(self: "Client", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Generator[AnswerT, None, None]:
        return self._partials(build(*args, **kwargs))

    describe(ask, build, "Client", stream=Generator[AnswerT, None, None])
    return ask


class Client(BaseClient[grpc.Channel, Model]):
    """A connection to a Sonde server.

    It is thread-safe. Leaving a `with` block closes it and cancels running calls.

        with sonde.Client("localhost:50051") as client:
            trace = client.trace("The Eiffel Tower is in the city of", targets=[" Paris"])

    Nothing is sent before the first call. If several servers host the same model, calls take turns among those that are
    serving:

        client = sonde.Client(["gpu1:50051", "gpu2:50051"])
    """

    trace = _answered(_signatures.trace)
    intervene = _answered(_signatures.intervene)
    tokenize = _answered(_signatures.tokenize)
    stream_trace = _streamed(_signatures.trace)
    stream_intervene = _streamed(_signatures.intervene)
    trace_token_probability = _answered(_signatures.trace_token_probability)
    intervene_on_neuron = _answered(_signatures.intervene_on_neuron)

    def close(self) -> None:
        """Close the connection and cancel running calls."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ calls

    def _open(self, connection: Connection) -> grpc.Channel:
        # gRPC's default reader of streams can wait forever, past the deadline, if a call is being retried while its
        # server disappears (seen in 1.85.1). This reader does not, and it needs no thread of its own.
        options = [*connection.options, (ChannelOptions.SingleThreadedUnaryStream, 1)]
        credentials = connection.credentials()
        if credentials is None:
            return grpc.insecure_channel(connection.target.name, options)
        return grpc.secure_channel(connection.target.name, credentials, options)

    def _get_model(self) -> Model:
        return self._known_model or self._describe(DEFAULT)

    def _wait(self, patience: Patience) -> Model:
        while True:
            try:
                return self._describe(patience.seconds)
            except (errors.NotServing, errors.DeadlineExceeded) as error:
                patience.failed(error)
            time.sleep(POLL_SECONDS)

    def _describe(self, timeout: Timeout) -> Model:
        self._check_open()
        try:
            response = self._stub.GetModel(
                pb.GetModelRequest(), timeout=self._connection.seconds(timeout), metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        return self._take_model(response)

    def _messages(self, method: str, request: Request, seconds: float | None) -> Generator[Any, None, None]:
        self._check_open()
        call = getattr(self._stub, method)(request, timeout=seconds, metadata=self._connection.metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            # Also after Ctrl-C, an error in the caller's progress function, and when a generator is abandoned.
            call.cancel()

    def _fed(self, question: Question[Any]) -> Generator[None, None, None]:
        """Feed the answers to the question, message by message. Of a dataset, ask for what is lacking."""
        asking, deadline = question.asking, Deadline(self._connection.seconds(question.timeout))
        if asking.needs_limits:
            self._get_model()
        with closing(reporter(question.progress)) as report:
            while (request := asking.request(self._limits)) is not None:
                try:
                    answer = self._messages(question.method, self._fitted(request), deadline.seconds)
                    with closing(answer) as messages:
                        for message in messages:
                            asking.feed(message)
                            if asking.steps.total:
                                report.update(asking.steps)
                            yield
                    asking.end()
                except errors.NotServing as error:
                    time.sleep(asking.broken(error))
                yield

    def _complete(self, question: Question[AnswerT]) -> AnswerT:
        with closing(self._fed(question)) as steps:
            for _ in steps:
                pass
        result = question.asking.result()
        self._agreement.check(result.provenance)
        return result

    def _partials(self, question: Question[AnswerT]) -> Generator[AnswerT, None, None]:
        with closing(self._fed(question)) as steps:
            for _ in steps:
                known = question.asking.news()
                if known is not None:
                    self._agreement.check(known.provenance)
                    yield known
        question.asking.result()  # Raises if the last partial result was not complete.
