"""The context of a call from the same process, for the servicer and its guards."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import grpc

Metadata = Sequence[tuple[str, str | bytes]]
PEER = "in-process"


class CallError(grpc.RpcError):
    """The error of a call, with the interface of gRPC's own errors."""

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
        """The metadata that carries google.rpc.Status."""
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
        """End the call, and call the callbacks."""
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
        """The error of the call, or None. As in gRPC, cancellation takes precedence over other errors."""
        if self._cancelled:
            return CallError(grpc.StatusCode.CANCELLED, "the call was cancelled")
        if self.expired:
            return CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        if self._code is not None and self._code is not grpc.StatusCode.OK:
            return CallError(self._code, self._details, self._trailing)
        return None

    # ------------------------------------------------------------------ the servicer's side

    def is_active(self) -> bool:
        """Whether the caller still waits."""
        return self._active and not self.expired

    def time_remaining(self) -> float | None:  # type: ignore[override] # the stubs promise a deadline
        """Seconds until the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> bool:
        """End the call from either side. Returns whether it was in progress."""
        with self._lock:
            going_on = self._active
            self._cancelled = self._cancelled or going_on
        self.finish()
        return going_on

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` when the call is over. Returns False if it is over already."""
        with self._lock:
            if self._active:
                self._callbacks.append(callback)
            return self._active

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status. Raises CallError, to end the servicer too."""
        self._code, self._details = code, details
        raise CallError(code, details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status and its details. Raises CallError, to end the servicer too."""
        told: Any = status  # the stubs lack its attributes
        self._trailing = tuple(told.trailing_metadata or ())
        self.abort(told.code, told.details)

    def code(self) -> grpc.StatusCode | None:
        """The status that was set."""
        return self._code

    def details(self) -> str:
        """Its message."""
        return self._details

    def trailing_metadata(self) -> Any:
        """The metadata that is sent with the status."""
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status with which the call will end."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Set the message of the status."""
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata that is sent with the status."""
        self._trailing = tuple(trailing_metadata)

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Do nothing: no client in this process reads it."""

    def invocation_metadata(self) -> Any:
        """The metadata of the call."""
        return self._metadata

    def peer(self) -> str:
        """The name of the peer."""
        return self._peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """None: there is no authentication within a process."""
        return None

    def peer_identity_key(self) -> str | None:
        """Nothing, for the same reason."""
        return None

    def auth_context(self) -> Any:
        """Nothing, for the same reason."""
        return {}
