"""The server of Sonde, and its model in this process without one.

import sonde_server

with sonde_server.local("gpt2") as client:  # a sonde.Client
    client.trace("The Eiffel Tower is in the city of")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .in_process import AsyncLocalClient, LocalClient

__all__ = ["local", "local_async"]


def local(model: str = "atlas", *, timeout: float | None = None, **settings: Any) -> "LocalClient":
    """Load a model into this process and ask it as one asks a server: the result is a `sonde.Client`.

    Nothing listens and nothing is sent; the requests are checked, computed and answered by the same code, with the same
    errors. Threads may share it, and their runs share batches. `with` closes it, which lets the model go.

    Args:
        model: the embedded model "atlas", a local directory, a GGUF file, or an id of the hub.
        timeout: seconds for every call that names none itself; None is no limit.
        settings: as those of `sonde-server` that are about the model: revision, device, dtype, max_prompt_tokens,
            max_runs, max_answer_bytes, cache_bytes.

    Raises:
        sonde.InvalidSettings: for a setting that there is not, or a value out of bounds.
        sonde.Unsupported: for a model that cannot be hosted; the message says why and what would do.
        ImportError: without torch or transformers, the extra `server`.
    """
    # torch comes along, which takes seconds.
    from .in_process import LocalClient

    return LocalClient(model, timeout=timeout, **settings)


def local_async(model: str = "atlas", *, timeout: float | None = None, **settings: Any) -> "AsyncLocalClient":
    """As `local`, for asyncio: a `sonde.AsyncClient`. Loading blocks; asking does not.

    Raises:
        sonde.InvalidSettings: for a setting that there is not, or a value out of bounds.
        sonde.Unsupported: for a model that cannot be hosted; the message says why and what would do.
        ImportError: without torch or transformers, the extra `server`.
    """
    from .in_process import AsyncLocalClient

    return AsyncLocalClient(model, timeout=timeout, **settings)
