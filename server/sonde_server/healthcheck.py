"""The container's health check: ask a running server whether it serves.

``python -m sonde_server.healthcheck`` asks the server of this machine that SONDE_HOST and SONDE_HEALTH_PORT describe,
or SONDE_PORT where it has no port for health alone, prints one line, and exits with 0 if the server is SERVING, with 1
if it is anything else or does not answer. It speaks without TLS: a server that has TLS needs its health port.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEFAULT_PORT = "50051"
TIMEOUT_SECONDS = 5.0
# Addresses that a server listens on but that cannot be called.
EVERY_INTERFACE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104


def default_address(environment: Mapping[str, str]) -> str:
    """Return the address at which the server that ``environment`` configures can be called from its own machine."""
    host = environment.get("SONDE_HOST", "127.0.0.1")
    host = EVERY_INTERFACE.get(host, host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    port = environment.get("SONDE_HEALTH_PORT") or environment.get("SONDE_PORT") or DEFAULT_PORT
    return f"{host}:{port}"


def check(address: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """Return the serving status of the server at ``address``.

    Args:
        address: Host and port.
        timeout: Seconds after which a server that does not answer counts as failed.

    Returns:
        A name of grpc.health.v1.HealthCheckResponse.ServingStatus, such as "SERVING".

    Raises:
        grpc.RpcError: The server does not answer, or has no health service.
    """
    # A proxy of the environment is for the outside world, never for this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set when it is made
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sonde_server.healthcheck", description=__doc__)
    parser.add_argument("--address", default=default_address(os.environ), help="HOST:PORT (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        status = check(options.address, options.timeout)
    except grpc.RpcError as error:
        status = f"{error.code().name}: {error.details()}".splitlines()[0]
    print(f"{options.address} {status}")
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
