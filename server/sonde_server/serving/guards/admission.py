"""How much at once: requests in progress by caller and altogether, and how long one may last.

Each call holds a thread while it lasts, and a reader may be slow. So fewer calls than there are threads are let in: the
rest of them tell everybody else to come back, and answer health.
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
# Threads beyond those that calls may hold.
SPARE_WORKERS = 4
# What ends by itself at its deadline is given so long to say so.
LENIENCE_SECONDS = 1.0


class AdmissionGuard(Guard):
    """Lets in what there is room for, and ends what lasts too long."""

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
        # Whoever has as many questions in progress as may be can still ask what the model is.
        share = (call.caller, call.method in self._inspecting)
        self._enter(call, share, call.ends, context)
        try:
            yield
        finally:
            self._leave(call, share)

    def wait_until_idle(self, seconds: float) -> None:
        """Returns once no call is in progress, at the latest after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, seconds)

    def stop(self) -> None:
        """Watches no longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watch.join()

    def _enter(self, call: Call, share: tuple[str, bool], ends: float, context: grpc.ServicerContext) -> None:
        with self._changed:
            theirs, all_of_them = self._held[share], len(self._calls)
            if self._most and theirs >= self._most:
                text = f"{theirs} requests of {call.caller} are in progress, and a caller may have {self._most}"
                raise TooManyRequests(text, RETRY_SECONDS, asked=theirs + 1, allowed=self._most)
            if all_of_them >= self._room:
                text = f"{all_of_them} requests are in progress, and the server serves {self._room} at once"
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
        """Ends calls that cannot end by themselves: those whose reader does not read, or whose request never comes."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for ends, context in self._calls.values():
                    if ends <= now:
                        context.cancel()
                following = min((ends for ends, _ in self._calls.values() if ends > now), default=None)
                self._changed.wait(None if following is None else following - now)
