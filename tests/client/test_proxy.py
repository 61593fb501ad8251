"""A proxy in the way, as environments name one: a real one on a socket, which lets calls through or does not."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import sonde
from sonde._connection.proxies import proxy_for

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
FAR = "gpu.example.org:50051"


class Proxy:
    """Answers every CONNECT with what it is told to, or joins the two sides."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
        self.beyond: str | None = None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            self.asked.append(head.split(b"\r\n")[0].decode())
            if self.beyond is None:
                near.sendall(self.answer)
                near.close()
                return
            host, _, port = self.beyond.rpartition(":")
            far = socket.create_connection((host, int(port)))
            self._open.append(far)
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=self._pass_on, args=(far, near), daemon=True).start()
            self._pass_on(near, far)

    @staticmethod
    def _pass_on(source: socket.socket, drain: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                drain.sendall(part)

    def close(self) -> None:
        self._listener.close()
        for one in self._open:
            one.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with closing(Proxy()) as made:
        yield made


def ask(address: str) -> str:
    with sonde.Client(address, timeout=20) as client:
        return client.model.name


def ask_asynchronously(address: str) -> str:
    async def asked() -> str:
        async with sonde.AsyncClient(address, timeout=20) as client:
            return (await client.model).name

    return asyncio.run(asked())


BOTH = pytest.mark.parametrize("how", [ask, ask_asynchronously])
Ask = Callable[[str], str]


@BOTH
@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_call_that_a_proxy_refuses_names_the_variable(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str, how: Ask
) -> None:
    monkeypatch.setenv(name, f"http://me:secret@{proxy.address}")
    with pytest.raises(sonde.NotServing, match=f"no server answers at {FAR}") as caught:
        how(FAR)
    assert f"goes through the proxy {proxy.address} of the environment variable {name}" in str(caught.value)
    assert "no_proxy" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert f"CONNECT {FAR} HTTP/1.1" in proxy.asked


@BOTH
def test_a_proxy_that_is_not_there_is_named_too(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, how: Ask) -> None:
    proxy.close()
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    with pytest.raises(sonde.NotServing, match="of the environment variable http_proxy"):
        how(FAR)


@pytest.mark.usefixtures("proxy")
def test_a_proxy_that_says_nothing_is_named_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with sonde.Client(FAR) as client, pytest.raises(sonde.DeadlineExceeded, match="variable http_proxy"):
            client.trace("a", timeout=0.5)


@BOTH
def test_a_proxy_that_lets_calls_through_is_used(
    proxy: Proxy, peer: Any, answers: Any, monkeypatch: pytest.MonkeyPatch, how: Ask
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    proxy.beyond = peer.address
    peer.steps = [answers.model()]
    assert how(FAR) == "atlas"
    assert proxy.asked == [f"CONNECT {FAR} HTTP/1.1"]


@BOTH
@pytest.mark.parametrize("form", ["{}", "ipv4:{}", "localhost:{port}", "dns:///localhost:{port}"])
def test_what_stays_on_this_machine_passes_no_proxy(
    proxy: Proxy, peer: Any, answers: Any, monkeypatch: pytest.MonkeyPatch, form: str, how: Ask
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    peer.steps = [answers.model()]
    assert how(form.format(peer.address, port=peer.address.rpartition(":")[2])) == "atlas"
    assert proxy.asked == []


def test_a_failure_without_a_proxy_names_none(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    with pytest.raises(sonde.NotServing) as caught:
        ask("127.0.0.1:1")
    assert "proxy" not in str(caught.value)


def test_an_error_of_the_server_names_no_proxy(
    proxy: Proxy, peer: Any, fail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import grpc
    from google.rpc import error_details_pb2

    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    proxy.beyond = peer.address
    peer.steps = [fail(grpc.StatusCode.UNAVAILABLE, "loading", error_details_pb2.ErrorInfo(reason="LOADING"))]
    with pytest.raises(sonde.NotServing) as caught:
        ask(FAR)
    assert "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "host", "proxied"),
    [
        ({}, "gpu.example.org", ""),
        ({"http_proxy": "http://proxy:3128"}, "gpu.example.org", "proxy:3128 of the environment variable http_proxy"),
        ({"http_proxy": "http://proxy"}, "gpu", "the proxy proxy of"),
        ({"http_proxy": ""}, "gpu", ""),
        ({"grpc_proxy": "", "http_proxy": "http://proxy:1"}, "gpu", ""),
        (
            {"https_proxy": "http://one:1", "http_proxy": "http://two:2"},
            "gpu",
            "one:1 of the environment variable h",
        ),
        (
            {"grpc_proxy": "http://one:1", "https_proxy": "http://two:2"},
            "gpu",
            "one:1 of the environment variable g",
        ),
        ({"http_proxy": "socks5://proxy:1"}, "gpu", ""),
        ({"http_proxy": "http://proxy:port"}, "gpu", ""),
        ({"http_proxy": "http://proxy:1", "no_proxy": "a, .example.org"}, "gpu.example.org", ""),
        ({"http_proxy": "http://proxy:1", "no_proxy": "GPU.example.ORG"}, "gpu.example.org", ""),
        ({"http_proxy": "http://proxy:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3", ""),
        ({"http_proxy": "http://proxy:1", "no_proxy": "10.0.0.0/8,"}, "11.1.2.3", "proxy:1"),
        ({"http_proxy": "http://proxy:1", "no_grpc_proxy": "a", "no_proxy": "gpu"}, "gpu", "proxy:1"),
    ],
)
def test_the_rules_are_those_of_grpc(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], host: str, proxied: str
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxied in proxy_for(host)
    assert bool(proxy_for(host)) is bool(proxied)
