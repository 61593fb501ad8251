"""What the guards have in common: each stands around the whole of a call, the stream of its answer included."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]
HEALTH = "/grpc.health.v1.Health/"


class Guard(grpc.ServerInterceptor):
    """Stands around every call but those of the health service, or around those below a prefix alone."""

    def __init__(self, prefix: str = "/") -> None:
        self._prefix = prefix

    def watches(self, method: str) -> bool:
        """Whether it stands around this method."""
        return method.startswith(self._prefix) and not method.startswith(HEALTH)

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wraps the handler."""
        handler = continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not self.watches(method):
            return handler
        return self.wrap(handler, handler_call_details)

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """The handler with `around` around it."""
        behaviour = streaming(handler)

        def guarded(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(details, context):
                # Not returned but delegated to: most of a call happens while it is iterated.
                yield from behaviour(requests, context)

        return as_stream(guarded, handler.request_deserializer, handler.response_serializer)

    @abstractmethod
    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """What is done before and after a call; entered and left by the thread that serves it."""


def streaming(handler: Handler) -> Behaviour:
    """Any handler as one that takes and gives streams. On the wire there is no difference.

    A handler of single requests has them read before it begins; this one begins first, and so a guard can turn a
    call away before a byte of its request is taken.
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
    """The handler of a behaviour."""
    return grpc.stream_stream_rpc_method_handler(
        behaviour, request_deserializer=deserializer, response_serializer=serializer
    )
