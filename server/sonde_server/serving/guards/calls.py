"""What is known of the call under way, for whoever serves it: its id, who makes it, what it has come to."""

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
    """What the caller sent along, by lower-case key; the last value where there are several."""
    id: str = field(default_factory=lambda: token_hex(8))
    """What the log calls it, and an error tells."""
    caller: str = ""
    """Who makes it: the name of a token or certificate, else the host it comes from."""
    authenticated: bool = False
    """Whether that is a name rather than a host."""
    trace_id: str = ""
    """Of the distributed trace it belongs to, where there is one."""
    runs: int = 0
    """How many runs it was counted for."""
    began: float = field(default_factory=time.monotonic)
    """When it came, as time.monotonic() tells it."""
    ends: float | None = None
    """When it has to be over, whatever the caller's own deadline."""

    @property
    def name(self) -> str:
        """The method without its service."""
        return self.method.rpartition("/")[2]

    def expired(self, context: Any) -> bool:
        """Whether its time is over: the caller's deadline has passed, or the server's own."""
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            return True
        return self.ends is not None and time.monotonic() >= self.ends


def begin_call(details: grpc.HandlerCallDetails) -> Call:
    """Makes the call that `current_call` gives from now on, in the context of this RPC."""
    metadata = {str(key): value for key, value in details.invocation_metadata or () if isinstance(value, str)}
    call = Call(str(details.method), metadata)
    _CURRENT.set(call)
    return call


def current_call() -> Call | None:
    """The call that this thread serves; none outside of calls."""
    return _CURRENT.get(None)


def peer_host(context: Any) -> str:
    """One name for all connections of a host: "ipv4:127.0.0.1:4711" without its port."""
    peer = str(context.peer())
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
