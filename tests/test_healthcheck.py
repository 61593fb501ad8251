"""The container's health check, against real health services."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sonde_server.healthcheck import default_address

Status = health_pb2.HealthCheckResponse.ServingStatus


@pytest.fixture
def health_service() -> Iterator[tuple[str, health.HealthServicer]]:
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(grace=None).wait()


def run_check(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--address", address] if address else []
    return subprocess.run(
        [sys.executable, "-m", "sonde_server.healthcheck", *arguments, "--timeout", "20"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("status", "code"), [("SERVING", 0), ("NOT_SERVING", 1), ("SERVICE_UNKNOWN", 1)])
def test_status_becomes_the_exit_code(
    health_service: tuple[str, health.HealthServicer], status: str, code: int
) -> None:
    address, servicer = health_service
    servicer.set("", Status.Value(status))
    result = run_check(address)
    assert (result.returncode, result.stdout, result.stderr) == (code, f"{address} {status}\n", "")


def test_nothing_that_listens_is_one_line_and_a_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = run_check(address)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{address} UNAVAILABLE: ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_address_comes_from_the_settings_of_the_server(health_service: tuple[str, health.HealthServicer]) -> None:
    address, servicer = health_service
    servicer.set("", Status.Value("SERVING"))
    result = run_check("", SONDE_HOST="0.0.0.0", SONDE_PORT=address.rpartition(":")[2])  # noqa: S104
    assert (result.returncode, result.stdout) == (0, f"{address} SERVING\n")


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "127.0.0.1:50051"),
        ({"SONDE_HOST": "0.0.0.0", "SONDE_PORT": "7"}, "127.0.0.1:7"),  # noqa: S104
        ({"SONDE_HOST": "::"}, "[::1]:50051"),
        ({"SONDE_HOST": "fe80::1"}, "[fe80::1]:50051"),
        ({"SONDE_HOST": "10.0.0.5"}, "10.0.0.5:50051"),
    ],
)
def test_default_address_can_be_called(environment: dict[str, str], address: str) -> None:
    assert default_address(environment) == address


def test_check_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, sonde_server.healthcheck; print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
