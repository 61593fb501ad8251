"""Several servers behind one client: turns, kills, shutdowns, restarts, servers that load, and names that change."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dnslib
import dnslib.server
import grpc
import pytest
import sonde
import sonde.cli
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sonde_server.config import Settings
from sonde_server.serving.server import SERVICE, Server

from tests.support.models import save_model
from tests.support.process import free_port
from tests.support.replicas import IDS, KINDS, Asking, Replica, Sweeps, replica, served, wait_for

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("replicas") / "llama")


@pytest.fixture(scope="module")
def steady(model: Path) -> Iterator[Replica]:
    """The one that stays."""
    with replica(model) as started:
        yield started


def ask(kind: str, addresses: Any, times: int, **arguments: Any) -> list[sonde.TraceResult]:
    """Small questions, one after the other."""
    if kind == "sync":
        with sonde.Client(addresses, timeout=60) as client:
            return [client.trace(IDS, **arguments) for _ in range(times)]

    async def main() -> list[sonde.TraceResult]:
        async with sonde.AsyncClient(addresses, timeout=60) as client:
            return [await client.trace(IDS, **arguments) for _ in range(times)]

    return asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_that_stops_or_dies_is_passed_over_and_used_again(kind: str, model: Path, steady: Replica) -> None:
    port = free_port()
    addresses = [f"127.0.0.1:{port}", steady.address]
    with ExitStack() as stack:
        first = stack.enter_context(replica(model, port))
        before = steady.calls
        asking = stack.enter_context(Asking(kind, addresses))
        assert wait_for(lambda: first.calls >= 20 and steady.calls >= before + 20)
        # Told to stop, it goes without an error to anybody.
        assert first.stop() == 0
        assert asking.goes_on()
        assert asking.errors == []
        # Started again, it gets its share again.
        second = stack.enter_context(replica(model, port))
        assert wait_for(lambda: second.calls >= 20, 20)
        assert asking.errors == []
        # Killed, it takes along at most what it was answering.
        second.kill()
        assert asking.goes_on()
        broken = list(asking.errors)
        assert len(broken) <= 4
        assert [error for error in broken if not (isinstance(error, sonde.NotServing) and error.retryable)] == []
        assert asking.goes_on()
        assert asking.errors == broken
        assert asking.wrong == []
        third = stack.enter_context(replica(model, port))
        assert wait_for(lambda: third.calls >= 20, 20)
        assert asking.errors == broken


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_answers_of_a_killed_replica_are_broken_off(kind: str, model: Path, steady: Replica) -> None:
    with replica(model) as doomed:
        before = steady.sweeps
        sweeps = Sweeps(kind, [doomed, steady], 4)
        sweeps.start()
        assert wait_for(lambda: sweeps.under_way)
        doomed.kill()
        sweeps.join(120)
        broken = [error for error in sweeps.errors if error is not None]
        assert len(broken) == 2
        assert all(isinstance(error, sonde.NotServing) and error.retryable for error in broken)
        assert sorted(sweeps.progress)[2:] == [1, 1]
        # Those that broke off were not asked again.
        assert wait_for(lambda: steady.sweeps == before + 2)
        assert len(ask(kind, [doomed.address, steady.address], 20)) == 20
        assert steady.sweeps == before + 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_that_does_not_serve_gets_no_calls(kind: str, model: Path, steady: Replica) -> None:
    loading = Server(Settings(model=str(model), port=0, device="cpu", metrics_port=0))
    try:
        loading.listen()
        with grpc.insecure_channel(loading.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        ask(kind, [loading.address, steady.address], 30)
        with pytest.raises(sonde.NotServing, match=f"no server serves at {loading.address}, 127.0.0.1:1 "):
            ask(kind, [loading.address, "127.0.0.1:1"], 1)
        assert served(loading) == 0
        loading.load()
        with Asking(kind, [loading.address, steady.address], 1) as asking:
            assert wait_for(lambda: served(loading) >= 10, 20)
        assert asking.errors == []
    finally:
        loading.stop(0)


def test_those_who_watch_health_leave_the_workers_free(model: Path) -> None:
    settings = Settings(model=str(model), port=0, device="cpu", workers=6)
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        watchers = [health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60) for _ in range(50)]
        assert {next(watcher).status for watcher in watchers} == {health_pb2.HealthCheckResponse.SERVING}
        assert len(ask("sync", server.address, 5)) == 5
        for watcher in watchers:
            watcher.cancel()


class Names(dnslib.server.BaseResolver):  # type: ignore[misc, unused-ignore]
    """A name server that gives every name the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def resolve(self, request: dnslib.DNSRecord, _handler: object) -> dnslib.DNSRecord:
        reply = request.reply()
        if request.q.qtype == dnslib.QTYPE.A:
            for address in self.addresses:
                reply.add_answer(dnslib.RR(request.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=1))
        return reply


@contextmanager
def name_server(names: Names) -> Iterator[str]:
    """Its address."""
    quiet = dnslib.server.DNSLogger("-request,-reply,-truncated,-error,-recv,-send,-data")
    server = dnslib.server.DNSServer(names, address="127.0.0.1", port=0, logger=quiet)
    server.start_thread()
    try:
        yield f"127.0.0.1:{server.server.server_address[1]}"
    finally:
        server.stop()
        server.server.server_close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_all_of_its_servers_and_those_that_are_added(kind: str, model: Path) -> None:
    settings = {"model": str(model), "device": "cpu", "metrics_port": 0, "max_connection_age": 1}
    names = Names("127.0.0.1")
    with name_server(names) as resolver, Server(Settings(port=0, **settings)) as one:
        port = int(one.address.rpartition(":")[2])
        with (
            Server(Settings(host="127.0.0.2", port=port, **settings)) as other,
            Asking(kind, f"dns://{resolver}/sonde.test:{port}") as asking,
        ):
            assert asking.goes_on()
            assert served(other) == 0
            names.addresses = ("127.0.0.1", "127.0.0.2")
            # The connection is renewed each second, and a name is looked up at most each five.
            assert wait_for(lambda: served(other) >= 20, 20)
    assert asking.errors == []
    assert asking.wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_is_told_of_replicas_with_different_models(kind: str, model: Path, tmp_path: Path) -> None:
    other = save_model("llama", tmp_path / "other", seed=1)
    one, two = (Server(Settings(model=str(path), port=0, device="cpu")) for path in (model, other))
    with one, two:
        with pytest.warns(sonde.ReplicasDiffer, match="the servers host different models") as told:
            results = ask(kind, [one.address, two.address], 30)
        assert len(told) == 1
        revisions = {result.provenance.revision for result in results}
        assert len(revisions) == 2
        assert all(revision in str(told[0].message) for revision in revisions)
        assert told[0].filename == __file__
        # One server is what it is.
        ask(kind, one.address, 2)


def test_the_command_takes_several_addresses(
    model: Path, steady: Replica, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SONDE_ADDRESS", f"127.0.0.1:1,{steady.address}")
    assert sonde.cli.main(["model"]) == 0
    assert f"model          {model.name}\n" in capsys.readouterr().out
    assert sonde.cli.main(["model", "--address", f"{steady.address},{steady.address}"]) == 2
    assert "more than once" in capsys.readouterr().err
