"""A channel to a servicer of this process, and its calls."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any, Final, Generic, NamedTuple, Self, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from sonde.v1.inspection_pb2_grpc import InspectionServiceServicer, add_InspectionServiceServicer_to_server

from .context import CallError, Context, Metadata

T = TypeVar("T")
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Finder: TypeAlias = "Callable[[Any], _Handler | None]"
_END: Final = object()


class _Details(NamedTuple):
    """What interceptors look at first."""

    method: str
    invocation_metadata: Metadata


class _Methods:
    """Takes a servicer's methods as a server would."""

    def __init__(self, servicer: InspectionServiceServicer) -> None:
        self.by_name: dict[str, _Handler] = {}
        server: Any = self
        add_InspectionServiceServicer_to_server(servicer, server)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """The same methods come by name too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Keeps them."""
        self.by_name.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class Endpoint:
    """A servicer behind its interceptors, the first of which is the outermost."""

    def __init__(self, servicer: InspectionServiceServicer, interceptors: "Sequence[grpc.ServerInterceptor]") -> None:
        self._methods = _Methods(servicer).by_name
        self._interceptors = tuple(interceptors)

    def answers(self, method: str, request: Message | bytes, context: Context) -> Iterator[Any]:
        """Serves one call. Bytes are what a socket would have brought."""
        handler = self._handler(_Details(method, context.invocation_metadata()))
        given: Any = request
        if handler.request_deserializer is not None:
            given = handler.request_deserializer(request) if isinstance(request, bytes) else request
        elif not isinstance(request, bytes):
            # A guard that parses requests itself wants their bytes.
            given = request.SerializeToString()
        if handler.stream_stream is not None:
            yield from handler.stream_stream(iter([given]), context)
        elif handler.unary_stream is not None:
            yield from handler.unary_stream(given, context)
        else:
            assert handler.unary_unary is not None
            yield handler.unary_unary(given, context)

    def _handler(self, details: _Details) -> _Handler:
        following: _Finder = lambda told: self._methods.get(told.method)  # noqa: E731
        for interceptor in reversed(self._interceptors):
            following = _intercepted(interceptor, following)
        handler = following(details)
        if handler is None:
            raise CallError(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {details.method}")
        return handler


def _intercepted(interceptor: "grpc.ServerInterceptor", following: _Finder) -> _Finder:
    def told(details: Any) -> "_Handler | None":
        return interceptor.intercept_service(following, details)

    return told


class Call(Generic[T]):
    """A call under way: an iterator of its messages that computes as it is read. Any thread may cancel it."""

    def __init__(self, endpoint: Endpoint, method: str, request: Message | bytes, context: Context) -> None:
        self._context = context
        # What the guards keep in context variables stays between the call's own steps, whichever thread takes them.
        self._variables = copy_context()
        self._answers = endpoint.answers(method, request, context)
        self._step = threading.Lock()
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        with self._step:
            if not self._ended:
                self._check()
                try:
                    message: T = self._variables.run(next, self._answers)
                except StopIteration:
                    self._end()
                except Exception as error:  # noqa: BLE001 - as in gRPC, the caller learns that it failed
                    self._end()
                    known = error if isinstance(error, CallError) else None
                    failure = self._context.error() or known
                    raise failure or CallError(grpc.StatusCode.UNKNOWN, repr(error)) from None
                except BaseException:
                    self._end()
                    raise
                else:
                    self._check()
                    return message
        if (failed := self._context.error()) is not None and failed.code() is grpc.StatusCode.CANCELLED:
            raise failed
        raise StopIteration

    def only(self) -> T:
        """The one message of a call that has one."""
        (message,) = self
        return message

    def cancel(self) -> bool:
        """Ends the call, at once or, where another thread is computing, before the next block of the model."""
        going_on = self._context.cancel()
        if self._step.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._step.release()
        return going_on

    def _check(self) -> None:
        """Ends the call if the caller has, or if its time is over."""
        failure = self._context.error()
        if failure is not None:
            self._end()
            raise failure

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._context.finish()
            self._variables.run(_close, self._answers)


def _close(answers: Iterator[Any]) -> None:
    assert isinstance(answers, Generator)
    answers.close()


class AsyncCall(Generic[T]):
    """The same for asyncio: every step is taken on another thread, so the loop goes on meanwhile."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        message = await asyncio.to_thread(next, self._call, _END)
        if message is _END:
            raise StopAsyncIteration
        return message  # type: ignore[return-value] # the sentinel was looked for above

    def cancel(self) -> bool:
        """As `Call.cancel`."""
        return self._call.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.to_thread(self._call.only).__await__()


class Channel:
    """What a stub needs of a `grpc.Channel`. Closing it cancels its calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._calls: weakref.WeakSet[Call[Any]] = weakref.WeakSet()
        self._closed = False

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method that answers with one message."""

        def ask(request: Message, *, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            return self._begin(method, request, timeout, metadata).only()

        return ask

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method that answers with a stream."""

        def ask(request: Message, *, timeout: float | None = None, metadata: Metadata = ()) -> Call[Any]:
            return self._begin(method, request, timeout, metadata)

        return ask

    def close(self) -> None:
        """Cancels what runs and refuses what comes."""
        self._closed = True
        for call in list(self._calls):
            call.cancel()

    def _begin(self, method: str, request: Message, timeout: float | None, metadata: Metadata) -> Call[Any]:
        call: Call[Any] = Call(self._endpoint, method, request, Context(metadata, timeout))
        self._calls.add(call)
        if self._closed:
            call.cancel()
        return call


class AsyncChannel:
    """The same for asyncio."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = Channel(endpoint)

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., AsyncCall[Any]]:
        """A method whose call is awaited for its one message."""
        return self.unary_stream(method)

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., AsyncCall[Any]]:
        """A method that answers with a stream."""
        ask = self._channel.unary_stream(method)
        return lambda request, **how: AsyncCall(ask(request, **how))

    async def close(self) -> None:
        """Cancels what runs and refuses what comes."""
        await asyncio.to_thread(self._channel.close)
