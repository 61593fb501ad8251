"""The asynchronous client and the event loops of a program."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sonde
from sonde.v1 import inspection_pb2 as pb

EDIT = sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)
Ask = Callable[[sonde.AsyncClient], Awaitable[Any]]


async def _streamed(client: sonde.AsyncClient) -> Any:
    return [partial async for partial in client.stream_trace("a")]


async def _described(client: sonde.AsyncClient) -> Any:
    return await client.model


ASKS: dict[str, Ask] = {
    "trace": lambda client: client.trace("a"),
    "intervene": lambda client: client.intervene("a", EDIT),
    "stream": _streamed,
    "model": _described,
    "wait": lambda client: client.wait_until_serving(5),
}


@pytest.fixture
def answering(peer: Any, answers: Any) -> str:
    """A server that answers a trace, whatever is asked."""
    peer.steps = [pb.TraceResponse(context=answers.context())]
    return str(peer.address)


def in_a_thread(work: Callable[[], object]) -> list[BaseException]:
    """What comes of work on a thread that never had an event loop."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return raised


def test_it_can_be_made_before_any_loop_runs(answering: str) -> None:
    client = sonde.AsyncClient(answering)

    async def main() -> str:
        async with client:
            result = await client.trace("a")
        return result.prediction.top(1)[0].text

    assert asyncio.run(main()) == " Paris"


def test_it_can_be_made_on_a_thread_without_a_loop(answering: str) -> None:
    made: list[sonde.AsyncClient] = []
    assert in_a_thread(lambda: made.append(sonde.AsyncClient(answering))) == []

    async def main() -> None:
        async with made[0] as client:
            await client.trace("a")

    asyncio.run(main())


def test_one_that_was_never_used_can_be_closed_anywhere() -> None:
    client = sonde.AsyncClient("127.0.0.1:1")
    asyncio.run(client.close())
    with pytest.raises(sonde.Cancelled, match="closed"):
        asyncio.run(client.trace("a"))  # type: ignore[arg-type, unused-ignore]


def test_a_certificate_that_is_not_there_is_told_of_at_once() -> None:
    with pytest.raises(sonde.InvalidSettings, match="root_certificate"):
        sonde.AsyncClient("localhost", tls=sonde.TLS(root_certificate="/nowhere.pem"))


@pytest.mark.parametrize("name", ASKS)
def test_another_loop_is_told_what_to_do(answering: str, name: str) -> None:
    client = sonde.AsyncClient(answering)

    async def first() -> None:
        await client.trace("a")

    async def second() -> None:
        await ASKS[name](client)

    asyncio.run(first())
    with pytest.raises(sonde.InvalidSettings, match="first used in another event loop") as caught:
        asyncio.run(second())
    assert answering in str(caught.value)
    assert "make a client in each event loop" in str(caught.value)
    asyncio.run(client.close())  # Its loop is gone, and the channel with it.


def test_a_loop_that_runs_beside_it_is_told_the_same(answering: str) -> None:
    async def main() -> None:
        async with sonde.AsyncClient(answering) as client:
            await client.trace("a")

            async def elsewhere() -> None:
                await client.trace("a")

            async def closing() -> None:
                await client.close()

            for wrong in (elsewhere, closing):
                raised = await asyncio.to_thread(in_a_thread, lambda wrong=wrong: asyncio.run(wrong()))
                assert [type(error) for error in raised] == [sonde.InvalidSettings]

    asyncio.run(main())


def test_a_client_for_each_loop_works(answering: str) -> None:
    async def main() -> str:
        async with sonde.AsyncClient(answering) as client:
            return (await client.trace("a")).prediction.top(1)[0].text

    assert [asyncio.run(main()) for _ in range(3)] == [" Paris"] * 3
    said: list[str] = []
    assert in_a_thread(lambda: said.append(asyncio.run(main()))) == []
    assert said == [" Paris"]
