"""What is known about the current call: its id, its caller, its size."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import grpc

_CURRENT: ContextVar["Call"] = ContextVar("call")


@dataclass(slots=True)
class Call:
    """One call."""

    method: str
    """The full name, such as "/sonde.v1.InspectionService/Trace"."""
    metadata: dict[str, str]
    """The metadata of the call, by lower-case key; the last value if there are several."""
    id: str = field(default_factory=lambda: token_hex(8))
    """The request id in the log and in errors."""
    caller: str = ""
    """The name in the token or certificate, or else the host of the client."""
    authenticated: bool = False
    """Whether `caller` is a name rather than a host."""
    trace_id: str = ""
    """The id of the distributed trace that it belongs to, if any."""
    runs: int = 0
    """Its number of runs."""
    began: float = field(default_factory=time.monotonic)
    """When it began, by time.monotonic()."""
    ends: float | None = None
    """When it has to end, by time.monotonic(), even if the caller's own deadline is later."""

    @property
    def name(self) -> str:
        """The name of the method without its service."""
        return self.method.rpartition("/")[2]

    def expired(self, context: Any) -> bool:
        """Whether the caller's deadline or the server's own has passed."""
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            return True
        return self.ends is not None and time.monotonic() >= self.ends


def begin_call(details: grpc.HandlerCallDetails) -> Call:
    """Make the call that `current_call` returns from now on in the context of this RPC."""
    metadata = {str(key): value for key, value in details.invocation_metadata or () if isinstance(value, str)}
    call = Call(str(details.method), metadata)
    _CURRENT.set(call)
    return call


def current_call() -> Call | None:
    """The call that this thread serves, or None."""
    return _CURRENT.get(None)


def peer_host(context: Any) -> str:
    """The same name for all connections of a host: "ipv4:127.0.0.1:4711" without the port."""
    peer = str(context.peer())
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
