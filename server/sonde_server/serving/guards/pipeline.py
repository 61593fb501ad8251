"""The base of the guards: each wraps a whole call, including the stream of its answer."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]
HEALTH = "/grpc.health.v1.Health/"


class Guard(grpc.ServerInterceptor):
    """Wraps every call whose method begins with a prefix, except those of the health service."""

    def __init__(self, prefix: str = "/") -> None:
        self._prefix = prefix

    def watches(self, method: str) -> bool:
        """Whether it wraps this method."""
        return method.startswith(self._prefix) and not method.startswith(HEALTH)

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the handler."""
        handler = continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not self.watches(method):
            return handler
        return self.wrap(handler, handler_call_details)

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler with `around` around it."""
        behaviour = streaming(handler)

        def guarded(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(details, context):
                # Iterate here instead of returning the iterator: most of a call happens during the iteration.
                yield from behaviour(requests, context)

        return as_stream(guarded, handler.request_deserializer, handler.response_serializer)

    @abstractmethod
    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """A context for the call, entered and left by the thread that serves it."""


def streaming(handler: Handler) -> Behaviour:
    """Turn any handler into one with a stream of requests and a stream of answers. On the wire they are the same.

    gRPC calls a handler of single requests once the request has been read. A handler of streams is called before, so a
    guard can refuse a call without reading any of its request.
    """
    if handler.request_streaming:
        assert handler.stream_stream is not None, "no method streams requests to a single answer"
        return handler.stream_stream
    if handler.response_streaming:
        answers = handler.unary_stream
        assert answers is not None

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            yield from answers(next(requests), context)

        return stream
    answer = handler.unary_unary
    assert answer is not None

    def single(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield answer(next(requests), context)

    return single


def as_stream(behaviour: Behaviour, deserializer: Any, serializer: Any) -> Handler:
    """Make a handler from a behaviour."""
    return grpc.stream_stream_rpc_method_handler(
        behaviour, request_deserializer=deserializer, response_serializer=serializer
    )
