"""One way to ask through every client: over a socket and in process, with and without asyncio."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, aclosing, closing
from typing import Any, Protocol, TypeVar

import pytest
import sonde
import sonde_server

from tests.conftest import Host

T = TypeVar("T")
SECONDS = 60.0


class Asker(Protocol):
    """A client, whichever it is, with calls that wait for their answer."""

    def model(self) -> sonde.Model: ...
    def serving(self, timeout: float) -> sonde.Model: ...
    def ask(self, name: str, *given: Any, **options: Any) -> Any: ...
    def stream(self, name: str, *given: Any, most: int | None = None, **options: Any) -> list[Any]: ...
    def close(self) -> None: ...


class SyncAsker:
    def __init__(self, client: sonde.Client) -> None:
        self.client = client

    def model(self) -> sonde.Model:
        return self.client.model

    def serving(self, timeout: float) -> sonde.Model:
        return self.client.wait_until_serving(timeout)

    def ask(self, name: str, *given: Any, **options: Any) -> Any:
        return getattr(self.client, name)(*given, **options)

    def stream(self, name: str, *given: Any, most: int | None = None, **options: Any) -> list[Any]:
        found: list[Any] = []
        stream: Generator[Any, None, None] = getattr(self.client, name)(*given, **options)
        with closing(stream):
            for part in stream:
                found.append(part)
                if len(found) == most:
                    break
        return found

    def close(self) -> None:
        self.client.close()


class AsyncAsker:
    """Its client lives in an event loop on a thread of its own, as in a program that uses asyncio throughout."""

    def __init__(self, make: Callable[[], sonde.AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def made() -> sonde.AsyncClient:
            return make()

        self.client = self._wait(made())

    def model(self) -> sonde.Model:
        async def known() -> sonde.Model:
            return await self.client.model

        return self._wait(known())

    def serving(self, timeout: float) -> sonde.Model:
        return self._wait(self.client.wait_until_serving(timeout))

    def ask(self, name: str, *given: Any, **options: Any) -> Any:
        return self._wait(getattr(self.client, name)(*given, **options))

    def stream(self, name: str, *given: Any, most: int | None = None, **options: Any) -> list[Any]:
        async def taken() -> list[Any]:
            found: list[Any] = []
            stream: AsyncGenerator[Any, None] = getattr(self.client, name)(*given, **options)
            async with aclosing(stream):
                async for part in stream:
                    found.append(part)
                    if len(found) == most:
                        break
            return found

        return self._wait(taken())

    def close(self) -> None:
        self._wait(self.client.close())

    def stop(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()

    def _wait(self, asked: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(SECONDS)


KINDS = ("remote", "remote async", "local", "local async")


class Askers:
    """A client of each kind, all of the same model."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self._host = host
        self._stack = stack
        self._open: dict[str, Asker] = {}

    def __getitem__(self, kind: str) -> Asker:
        """One that stays open for the whole suite."""
        if kind not in self._open:
            self._open[kind] = self.another(kind)
        return self._open[kind]

    def another(self, kind: str, **settings: Any) -> Asker:
        """One that a test may close."""
        how = {"device": "cpu", "dtype": "float32"}
        folder = self._host.server.settings.model
        address = self._host.server.address
        asker: SyncAsker | AsyncAsker
        match kind:
            case "remote":
                asker = SyncAsker(sonde.Client(address, **settings))
            case "remote async":
                asker = AsyncAsker(lambda: sonde.AsyncClient(address, **settings))
            case "local":
                asker = SyncAsker(sonde_server.local(folder, **how, **settings))
            case _:
                asker = AsyncAsker(lambda: sonde_server.local_async(folder, **how, **settings))
        self._stack.callback(asker.stop if isinstance(asker, AsyncAsker) else asker.close)
        return asker


@pytest.fixture(scope="session")
def askers(llama: Host) -> Iterator[Askers]:
    with ExitStack() as stack:
        yield Askers(llama, stack)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def asker(askers: Askers, kind: str) -> Asker:
    """Every test that takes it runs for each kind of client."""
    return askers[kind]
