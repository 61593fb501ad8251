"""The clients that hold their model themselves."""

import asyncio
import importlib.util
import warnings
import weakref
from dataclasses import replace
from typing import Any, Final, cast

import grpc
from sonde import AsyncClient, Client, InvalidSettings, Unsupported
from sonde._connection.addresses import DEFAULT_ADDRESS
from sonde._connection.connection import Connection
from sonde._connection.loops import LoopChannel

from ..config import SettingError, Settings
from ..errors import UnsupportedModel
from ..serving.server import Server
from .channel import AsyncChannel, Channel

SETTINGS: Final = (
    "revision",
    "device",
    "device_map",
    "dtype",
    "pack_weights",
    "max_prompt_tokens",
    "max_runs",
    "max_answer_bytes",
    "max_working_bytes",
    "max_image_bytes",
    "max_image_pixels",
    "cache_bytes",
)
"""Those of a server's settings that are about its model."""


class LocalClient(Client):
    """A `sonde.Client` whose model is in this process. Closing it lets the model go."""

    def __init__(self, model: str, *, timeout: float | None = None, **settings: Any) -> None:
        """Loads the model; see `sonde_server.local`."""
        connection = _connection(model, timeout)
        server = _load(model, settings)
        # Also when it is never closed: the model's thread would hold the model for ever.
        self._stop = weakref.finalize(self, server.stop, 0)
        self._attach(connection, cast("grpc.Channel", Channel(server.endpoint)))

    def close(self) -> None:
        """Lets the model go. Calls that still run are cancelled."""
        super().close()
        self._stop()


class AsyncLocalClient(AsyncClient):
    """A `sonde.AsyncClient` whose model is in this process. Closing it lets the model go."""

    def __init__(self, model: str, *, timeout: float | None = None, **settings: Any) -> None:
        """Loads the model; see `sonde_server.local_async`."""
        connection = _connection(model, timeout)
        server = _load(model, settings)
        self._stop = weakref.finalize(self, server.stop, 0)
        self._attach(connection, cast("LoopChannel", AsyncChannel(server.endpoint)))

    async def close(self) -> None:
        """Lets the model go. Calls that still run are cancelled."""
        await super().close()
        await asyncio.to_thread(self._stop)


def _connection(model: str, timeout: float | None) -> Connection:
    """Checked before the model is loaded, which takes long."""
    return replace(Connection.of(DEFAULT_ADDRESS, None, False, timeout), address=str(model))


def _load(model: str, settings: dict[str, Any]) -> Server:
    for name in settings:
        if name not in SETTINGS:
            raise InvalidSettings(f"{name}: not a setting of a model; it may be {', '.join(SETTINGS)}, timeout")
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"a model in this process needs {name}: pip install 'sonde[server]'")
    try:
        server = Server(Settings(model=str(model), **settings))
    except SettingError as error:
        raise InvalidSettings(str(error)) from None
    try:
        with warnings.catch_warnings():
            # In a notebook without widgets a library says so of a progress bar that is not shown anyway.
            warnings.filterwarnings("ignore", "IProgress not found")
            server.load()
    except UnsupportedModel as error:
        server.stop(0)
        raise Unsupported(str(error), reason="UNSUPPORTED_MODEL") from None
    except BaseException:
        server.stop(0)
        raise
    return server
