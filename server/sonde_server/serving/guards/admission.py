"""Limits concurrent requests, per caller and in all, and how long a request may take.

Each call occupies a thread while it lasts, and a reader may be slow. So fewer calls are admitted than there are
threads: the others tell further callers to retry, and answer health checks.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ...errors import TooManyRequests
from .calls import Call, current_call
from .pipeline import Guard

RETRY_SECONDS = 1.0
# Threads that calls may not occupy.
SPARE_WORKERS = 4
# Calls that end by themselves at their deadline get this long to do so.
LENIENCE_SECONDS = 1.0


class AdmissionGuard(Guard):
    """Refuses calls beyond the limits, and ends calls that take too long."""

    def __init__(self, inspecting: frozenset[str], *, workers: int, most: int, seconds: float) -> None:
        super().__init__()
        self._inspecting = inspecting
        self._room = max(1, workers - SPARE_WORKERS)
        self._most = most
        self._seconds = seconds
        self._changed = threading.Condition()
        self._held: Counter[tuple[str, bool]] = Counter()
        self._calls: dict[str, tuple[float, Any]] = {}
        self._closed = False
        self._watch = threading.Thread(target=self._end_overdue, name="sonde-overdue", daemon=True)
        self._watch.start()

    @contextmanager
    def around(self, details: grpc.HandlerCallDetails, context: grpc.ServicerContext) -> Iterator[None]:
        """Raises TooManyRequests."""
        call = current_call()
        assert call is not None
        call.ends = call.began + self._seconds
        # GetModel is counted apart: it answers a caller that has reached its limit of questions.
        share = (call.caller, call.method in self._inspecting)
        self._enter(call, share, call.ends, context)
        try:
            yield
        finally:
            self._leave(call, share)

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until no call is in progress, but at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, seconds)

    def stop(self) -> None:
        """Stop the thread that ends overdue calls."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watch.join()

    def _enter(self, call: Call, share: tuple[str, bool], ends: float, context: grpc.ServicerContext) -> None:
        with self._changed:
            theirs, all_of_them = self._held[share], len(self._calls)
            if self._most and theirs >= self._most:
                text = f"{call.caller} is at the limit of {self._most} concurrent requests per caller; retry later"
                raise TooManyRequests(text, RETRY_SECONDS, asked=theirs + 1, allowed=self._most)
            if all_of_them >= self._room:
                text = f"the server is at its limit of {self._room} concurrent requests; retry later"
                raise TooManyRequests(text, RETRY_SECONDS, asked=all_of_them + 1, allowed=self._room)
            self._held[share] += 1
            self._calls[call.id] = (ends + LENIENCE_SECONDS, context)
            self._changed.notify_all()

    def _leave(self, call: Call, share: tuple[str, bool]) -> None:
        with self._changed:
            del self._calls[call.id]
            self._held[share] -= 1
            if not self._held[share]:
                del self._held[share]
            if not self._calls:
                self._changed.notify_all()

    def _end_overdue(self) -> None:
        """End calls that cannot end by themselves: the client does not read the answer, or does not send a request."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for ends, context in self._calls.values():
                    if ends <= now:
                        context.cancel()
                following = min((ends for ends, _ in self._calls.values() if ends > now), default=None)
                self._changed.wait(None if following is None else following - now)
