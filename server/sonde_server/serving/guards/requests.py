"""Checks the size of requests before they are parsed, and refuses bytes that are not a message."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ...errors import InvalidQuestion, Stopped, Violation
from .pipeline import Guard, Handler, as_stream, streaming


class RequestGuard(Guard):
    """The innermost guard, so that the request of a call that another guard refuses is not read."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """Do nothing: the requests are wrapped instead."""
        return nullcontext()

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """The handler, with requests that are checked and parsed here."""
        behaviour = streaming(handler)
        parse: Any = handler.request_deserializer

        def parsed(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            yield from behaviour(self._messages(requests, parse, single=not handler.request_streaming), context)

        return as_stream(parsed, None, handler.response_serializer)

    def _messages(self, requests: Iterator[bytes], parse: Any, *, single: bool) -> Iterator[Any]:
        read = 0
        while True:
            try:
                data = next(requests)
            except StopIteration:
                break
            except grpc.RpcError as error:
                raise Stopped("the caller went away") from error
            read += 1
            yield self._parse(data, parse)
        if single and not read:
            raise _refusal("expected one request message, got none")

    def _parse(self, data: bytes, parse: Any) -> Any:
        if len(data) > self._most_bytes:
            raise _refusal(f"expected a request of at most {self._most_bytes} bytes, got {len(data)}")
        try:
            return parse(data)
        except DecodeError as error:
            raise _refusal(
                "expected a request message of this method, got other bytes; see sonde/v1/inspection.proto"
            ) from error


def _refusal(text: str) -> InvalidQuestion:
    return InvalidQuestion([Violation("", text)])
