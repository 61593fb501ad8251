"""A channel to a servicer in the same process, and its calls."""

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
    """The details of a call, for interceptors."""

    method: str
    invocation_metadata: Metadata


class _Methods:
    """Collects a servicer's methods, in place of a gRPC server."""

    def __init__(self, servicer: InspectionServiceServicer) -> None:
        self.by_name: dict[str, _Handler] = {}
        server: Any = self
        add_InspectionServiceServicer_to_server(servicer, server)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Do nothing: the same methods are registered by name too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, _Handler]) -> None:
        """Keep the handlers by their full names."""
        self.by_name.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class Endpoint:
    """A servicer behind its interceptors, outermost first."""

    def __init__(self, servicer: InspectionServiceServicer, interceptors: "Sequence[grpc.ServerInterceptor]") -> None:
        self._methods = _Methods(servicer).by_name
        self._interceptors = tuple(interceptors)

    def answers(self, method: str, request: Message | bytes, context: Context) -> Iterator[Any]:
        """Serve one call. A request as bytes is handled as if it had come through a socket."""
        handler = self._handler(_Details(method, context.invocation_metadata()))
        given: Any = request
        if handler.request_deserializer is not None:
            given = handler.request_deserializer(request) if isinstance(request, bytes) else request
        elif not isinstance(request, bytes):
            # A guard parses the request itself.
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
            raise CallError(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {details.method}")
        return handler


def _intercepted(interceptor: "grpc.ServerInterceptor", following: _Finder) -> _Finder:
    def told(details: Any) -> "_Handler | None":
        return interceptor.intercept_service(following, details)

    return told


class Call(Generic[T]):
    """A call in progress: an iterator of its messages, computed as they are read. Any thread may cancel it."""

    def __init__(self, endpoint: Endpoint, method: str, request: Message | bytes, context: Context) -> None:
        self._context = context
        # The guards' context variables are kept between the steps of the call, whichever threads take them.
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
                except Exception as error:  # noqa: BLE001 - as in gRPC, any error ends the call
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
        """The message of a call with a single answer."""
        (message,) = self
        return message

    def cancel(self) -> bool:
        """End the call: at once, or before the next block of the model if another thread is computing."""
        going_on = self._context.cancel()
        if self._step.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._step.release()
        return going_on

    def _check(self) -> None:
        """End the call if it was cancelled or its deadline has passed."""
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
    """`Call` for asyncio: each step runs on another thread, so that it does not block the loop."""

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
    """The part of `grpc.Channel` that a stub uses. Closing it cancels its calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._calls: weakref.WeakSet[Call[Any]] = weakref.WeakSet()
        self._closed = False

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method with a single answer."""

        def ask(request: Message, *, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            return self._begin(method, request, timeout, metadata).only()

        return ask

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """A method with a stream of answers."""

        def ask(request: Message, *, timeout: float | None = None, metadata: Metadata = ()) -> Call[Any]:
            return self._begin(method, request, timeout, metadata)

        return ask

    def close(self) -> None:
        """Cancel the calls in progress, and refuse new ones."""
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
    """`Channel` for asyncio."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = Channel(endpoint)

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., AsyncCall[Any]]:
        """A method with a single answer, which is awaited."""
        return self.unary_stream(method)

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., AsyncCall[Any]]:
        """A method with a stream of answers."""
        ask = self._channel.unary_stream(method)
        return lambda request, **how: AsyncCall(ask(request, **how))

    async def close(self) -> None:
        """Cancel the calls in progress, and refuse new ones."""
        await asyncio.to_thread(self._channel.close)
