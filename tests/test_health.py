"""Those who watch the health of a server, and go."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sonde_server.serving.health import HealthService

SECONDS = 60.0
ROUNDS = 30
WATCHERS = 20
States = health_pb2.HealthCheckResponse


@contextmanager
def watched(service: HealthService, workers: int) -> Iterator[health_pb2_grpc.HealthStub]:
    """A server of the health service alone, and a stub that asks it."""
    with ThreadPoolExecutor(workers) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield health_pb2_grpc.HealthStub(channel)
        server.stop(0).wait(SECONDS)


def test_watchers_may_go_while_they_are_told_something() -> None:
    service, request = HealthService(), health_pb2.HealthCheckRequest(service="one")
    with watched(service, 4) as stub:
        for number in range(ROUNDS):
            watchers = [stub.Watch(request, timeout=SECONDS) for _ in range(WATCHERS)]
            for watcher in watchers:
                next(watcher)
            status = States.SERVING if number % 2 else States.NOT_SERVING
            telling = threading.Thread(target=service.set, args=("one", status), daemon=True)
            telling.start()
            for watcher in watchers:
                watcher.cancel()
            telling.join(SECONDS)
            assert not telling.is_alive(), "who tells the watchers waits for ever"
            assert stub.Check(request, timeout=SECONDS).status == status


def test_who_watches_is_told_of_changes() -> None:
    service, request = HealthService(), health_pb2.HealthCheckRequest(service="one")
    with watched(service, 1) as stub:
        watchers = [stub.Watch(request, timeout=SECONDS) for _ in range(8)]
        assert [next(watcher).status for watcher in watchers] == [States.SERVICE_UNKNOWN] * 8
        for status in (States.SERVING, States.NOT_SERVING):
            service.set("one", status)
            assert [next(watcher).status for watcher in watchers] == [status] * 8
        for watcher in watchers:
            watcher.cancel()
