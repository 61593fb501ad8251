"""The outermost guard: gives each call its id, and tells the observers when it begins and ends."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from .calls import Call, begin_call, current_call
from .pipeline import Guard, Handler


class Observer(Protocol):
    """Is told of all calls: a log, metrics, traces."""

    def began(self, call: Call) -> None:
        """A call begins; its caller is not known yet."""

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """A call has ended, `seconds` after it began."""


class WatchGuard(Guard):
    """Wraps all other guards."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        super().__init__()
        self._observers = observers

    def wrap(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """The handler; `current_call` returns the call from here on."""
        begin_call(details)
        return super().wrap(handler, details)

    @contextmanager
    def around(self, details: grpc.HandlerCallDetails, context: Any) -> Iterator[None]:
        """Tell the observers, whatever happens."""
        call = current_call() or begin_call(details)
        for observer in self._observers:
            observer.began(call)
        code = grpc.StatusCode.OK
        try:
            yield
        except BaseException:
            code = _code_of(context, call)
            raise
        finally:
            if code is grpc.StatusCode.OK and not context.is_active():
                code = _ended_by_caller(context, call)
            seconds = time.monotonic() - call.began
            for observer in reversed(self._observers):
                observer.ended(call, code, seconds)


def _code_of(context: Any, call: Call) -> grpc.StatusCode:
    """The status that a call was aborted with. If there is none, the caller has ended the call."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    known = {int(status.value[0]): status for status in grpc.StatusCode}
    return _ended_by_caller(context, call) if code is None else known.get(int(code), grpc.StatusCode.UNKNOWN)


def _ended_by_caller(context: Any, call: Call) -> grpc.StatusCode:
    return grpc.StatusCode.DEADLINE_EXCEEDED if call.expired(context) else grpc.StatusCode.CANCELLED
