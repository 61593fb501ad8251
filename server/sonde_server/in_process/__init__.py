"""The server without a socket: the same servicer behind the same guards, in the process that holds the model.

`channel` stands where gRPC's channel stands, so clients, contract and errors are those of a server far away,
and there is one implementation. Messages are handed over as they are, never as bytes on a wire.
"""

from .client import AsyncLocalClient, LocalClient

__all__ = ["AsyncLocalClient", "LocalClient"]
