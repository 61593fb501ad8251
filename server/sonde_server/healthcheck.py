"""The container's health check: asks a running server whether it is serving.

``python -m sonde_server.healthcheck`` asks the server on this machine, at SONDE_HOST and SONDE_HEALTH_PORT or, without
a health port, SONDE_PORT. It prints one line, and exits with 0 if the server is SERVING, otherwise with 1. It does not
use TLS: a server with TLS needs a health port.
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
# Addresses to listen on that are not addresses to connect to.
EVERY_INTERFACE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104


def default_address(environment: Mapping[str, str]) -> str:
    """Return the address of the server that ``environment`` configures, as seen from its own machine."""
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
        timeout: Seconds to wait for an answer.

    Returns:
        A name of grpc.health.v1.HealthCheckResponse.ServingStatus, such as "SERVING".

    Raises:
        grpc.RpcError: The server does not answer, or has no health service.
    """
    # Do not use the environment's proxy for this machine.
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
