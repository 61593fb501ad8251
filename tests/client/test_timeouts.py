"""How long a call may take: whatever a person writes for it, the server is told of it or the client says why not."""

import asyncio
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sonde
from sonde.cli import main
from sonde.v1 import inspection_pb2 as pb

LONGEST = 27_000 * 3600.0
"""What the header of a call can carry, in gRPC's largest unit."""
NO_LIMIT = [None, float("inf"), np.float64("inf"), np.float16("inf")]
ACCEPTED = [
    (45, 45.0),
    (45.5, 45.5),
    (np.float32(45.5), 45.5),
    (np.float16(45.5), 45.5),
    (np.int64(45), 45.0),
    (np.uint8(45), 45.0),
    (Fraction(91, 2), 45.5),
    (1e10, LONGEST),
    (1e300, LONGEST),
    (10**400, LONGEST),
]
REFUSED = [
    float("nan"),
    np.float32("nan"),
    0,
    0.0,
    -1,
    float("-inf"),
    True,
    False,
    np.True_,
    "45",
    [45],
    np.array([1.0, 2.0]),
    {"seconds": 45},
]


def settings(timeout: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The timeout as a client's own, or as that of a call."""
    return ({"timeout": timeout}, {}) if where == "client" else ({}, {"timeout": timeout})


def ask(address: str, timeout: Any, where: str) -> None:
    of_client, of_call = settings(timeout, where)
    with sonde.Client(address, **of_client) as client:
        client.trace("a", **of_call)


def ask_asynchronously(address: str, timeout: Any, where: str) -> None:
    of_client, of_call = settings(timeout, where)

    async def asked() -> None:
        async with sonde.AsyncClient(address, **of_client) as client:
            await client.trace("a", **of_call)

    asyncio.run(asked())


ASKED = [ask, ask_asynchronously]


@pytest.fixture
def told(peer: Any, answers: Any) -> list[float]:
    """The time that the peer is told of, call by call; gRPC's servers tell of no deadline by one in the far future."""
    seen: list[float] = []
    context = pb.TraceResponse(context=answers.context())
    peer.steps = [lambda call: seen.append(call.time_remaining() or float("inf")), context]
    return seen


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("where", ["client", "call"])
@pytest.mark.parametrize(("timeout", "seconds"), ACCEPTED, ids=lambda value: repr(value)[:24])
def test_a_server_is_told_of_every_timeout(
    peer: Any, told: list[float], timeout: Any, seconds: float, where: str, how: Any
) -> None:
    how(peer.address, timeout, where)
    # A header of this length counts in hours, and a call takes a while.
    assert told == [pytest.approx(seconds, abs=5 if seconds < LONGEST else 3600)]


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("where", ["client", "call"])
@pytest.mark.parametrize("timeout", NO_LIMIT, ids=repr)
def test_infinity_is_no_limit(peer: Any, told: list[float], timeout: Any, where: str, how: Any) -> None:
    how(peer.address, timeout, where)
    assert told[0] > 10 * LONGEST


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("where", ["client", "call"])
@pytest.mark.parametrize("timeout", REFUSED, ids=repr)
def test_what_is_no_time_is_refused(peer: Any, told: list[float], timeout: Any, where: str, how: Any) -> None:
    with pytest.raises(sonde.InvalidSettings, match=r"^timeout: expected a number of seconds greater than 0") as caught:
        how(peer.address, timeout, where)
    assert str(caught.value).endswith(f"got {timeout!r}")
    assert told == []


@pytest.mark.parametrize("addresses", [["127.0.0.1:1", "127.0.0.1:2"], "dns:///localhost:1"])
def test_the_time_of_several_servers_is_checked_too(addresses: Any) -> None:
    with pytest.raises(sonde.InvalidSettings, match="timeout"):
        sonde.Client(addresses, timeout=float("nan"))
    with sonde.Client(addresses, timeout=float("inf")) as client, pytest.raises(sonde.NotServing):
        client.trace("a")


def test_waiting_for_a_server_takes_the_same_times(peer: Any, answers: Any) -> None:
    peer.steps = [answers.model()]

    async def asynchronous(seconds: Any) -> sonde.Model:
        async with sonde.AsyncClient(peer.address) as client:
            return await client.wait_until_serving(seconds)

    def synchronous(timeout: Any) -> sonde.Model:
        with sonde.Client(peer.address) as client:
            return client.wait_until_serving(timeout)

    for timeout in (*NO_LIMIT, *(timeout for timeout, _ in ACCEPTED)):
        assert synchronous(timeout).layers == asyncio.run(asynchronous(timeout)).layers == 2
    for timeout in REFUSED:
        with pytest.raises(sonde.InvalidSettings, match="timeout"):
            synchronous(timeout)
        with pytest.raises(sonde.InvalidSettings, match="timeout"):
            asyncio.run(asynchronous(timeout))


@pytest.mark.parametrize("timeout", ["inf", "1e12", "1e300", "45"])
def test_the_command_takes_the_same_times(
    peer: Any, told: list[float], timeout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "a", "--address", peer.address, "--timeout", timeout]) == 0
    assert capsys.readouterr().err == ""
    assert told[0] > 40


@pytest.mark.parametrize("timeout", ["nan", "0", "-1", "soon", ""])
def test_the_command_refuses_the_same(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["model", "--timeout", timeout])
    assert caught.value.code == 2
    assert f"expected a number of seconds greater than 0, got {timeout!r}" in capsys.readouterr().err
