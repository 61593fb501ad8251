"""What a servicer and its guards are told of a call that comes from this process."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import grpc

Metadata = Sequence[tuple[str, str | bytes]]
PEER = "in-process"


class CallError(grpc.RpcError):
    """How a call ended that gave no answer, as gRPC's own errors tell it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata = ()) -> None:
        super().__init__(details)
        self._code, self._details, self._trailing_metadata = code, details, tuple(trailing_metadata)

    def code(self) -> grpc.StatusCode:
        """The status."""
        return self._code

    def details(self) -> str:
        """Its message."""
        return self._details

    def trailing_metadata(self) -> Any:
        """Where google.rpc.Status is."""
        return self._trailing_metadata


class Context(grpc.ServicerContext):
    """The context of one call. It can be cancelled from any thread."""

    def __init__(self, metadata: Metadata, timeout: float | None, peer: str = PEER) -> None:
        self._metadata = tuple(metadata)
        self._peer = peer
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._active = True
        self._cancelled = False
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: Metadata = ()

    # ------------------------------------------------------------------ the caller's side

    def finish(self) -> None:
        """The call is over: those who asked to be called back are."""
        with self._lock:
            self._active = False
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def error(self) -> CallError | None:
        """What the caller is told now; None: nothing is wrong. As in gRPC the caller's own end of the call wins."""
        if self._cancelled:
            return CallError(grpc.StatusCode.CANCELLED, "the call was cancelled")
        if self.expired:
            return CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        if self._code is not None and self._code is not grpc.StatusCode.OK:
            return CallError(self._code, self._details, self._trailing)
        return None

    # ------------------------------------------------------------------ the servicer's side

    def is_active(self) -> bool:
        """Whether somebody still waits."""
        return self._active and not self.expired

    def time_remaining(self) -> float | None:  # type: ignore[override] # the stubs promise a deadline
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> bool:
        """Ends the call from either side. Returns whether it was going on."""
        with self._lock:
            going_on = self._active
            self._cancelled = self._cancelled or going_on
        self.finish()
        return going_on

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has `callback` called when the call is over; False: it is over already."""
        with self._lock:
            if self._active:
                self._callbacks.append(callback)
            return self._active

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call with a status. Raises, to end the servicer too."""
        self._code, self._details = code, details
        raise CallError(code, details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the call with a status and its details. Raises, to end the servicer too."""
        told: Any = status  # the stubs leave out what a status has
        self._trailing = tuple(told.trailing_metadata or ())
        self.abort(told.code, told.details)

    def code(self) -> grpc.StatusCode | None:
        """The status that was set."""
        return self._code

    def details(self) -> str:
        """Its message."""
        return self._details

    def trailing_metadata(self) -> Any:
        """What goes with the status."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status with which the call will end."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Sets its message."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Sets what goes with the status."""
        self._trailing = tuple(trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Nobody reads it here."""

    def invocation_metadata(self) -> Any:
        """What came with the call."""
        return self._metadata

    def peer(self) -> str:
        """Who calls."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Nobody has to say who they are."""
        return None

    def peer_identity_key(self) -> str | None:
        """Likewise."""
        return None

    def auth_context(self) -> Any:
        """Likewise."""
        return {}
