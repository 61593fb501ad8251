"""A channel of asyncio that is opened where it is first used: one of grpc.aio belongs to a single event loop."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from sonde.errors import InvalidSettings


class LoopChannel:
    """What a stub needs of a `grpc.aio.Channel`. Closing it cancels its calls."""

    def __init__(self, opened: Callable[[], grpc.aio.Channel], address: str) -> None:
        """`opened` opens the channel to `address`, in the event loop that runs then."""
        self._opened = opened
        self._address = address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._calls: set[Any] = set()

    def unary_unary(self, method: str, *given: Any, **how: Any) -> Callable[..., Any]:
        """A method whose call is awaited for its one message."""

        def ask(request: Any, **options: Any) -> Any:
            return self._begin(self._here().unary_unary(method, *given, **how)(request, **options))

        return ask

    def unary_stream(self, method: str, *given: Any, **how: Any) -> Callable[..., Any]:
        """A method that answers with a stream."""

        def ask(request: Any, **options: Any) -> Any:
            return self._begin(self._here().unary_stream(method, *given, **how)(request, **options))

        return ask

    async def close(self) -> None:
        """Cancel what runs. Nothing is left to do once the channel's event loop is closed.

        Raises:
            InvalidSettings: in another event loop than that of the channel.
        """
        if self._loop is None or self._loop.is_closed():
            return
        channel = self._here()
        # Older versions of grpcio find only those that a task awaits directly.
        for call in tuple(self._calls):
            call.cancel()
        await channel.close()

    def _here(self) -> grpc.aio.Channel:
        """The channel, if this is its event loop."""
        running = asyncio.get_running_loop()
        if self._channel is None:
            self._loop, self._channel = running, self._opened()
        elif self._loop is not running:
            raise InvalidSettings(
                f"the client of {self._address} was first used in another event loop, and an AsyncClient belongs to "
                "one: make a client in each event loop, such as inside each asyncio.run(...), or ask all questions in "
                "one"
            )
        return self._channel

    def _begin(self, call: Any) -> Any:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call
