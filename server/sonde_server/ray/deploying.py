"""Turns settings into a deployment: the application, the options of Ray Serve, and the command."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig, gRPCOptions
from ray.serve.deployment import Application
from ray.serve.exceptions import RayServeException

from ..serving.guards.admission import SPARE_WORKERS
from .proxying import add_to_server
from .replica import Replica
from .routing import PromptRouter
from .scaling import QueuePolicy
from .settings import RaySettings

ROUTER: Final = f"{PromptRouter.__module__}:{PromptRouter.__name__}"
SERVICER_FUNCTION: Final = f"sonde_server.ray.{add_to_server.__name__}"
HAPROXY: Final = "RAY_SERVE_ENABLE_HA_PROXY"
HEALTH_SECONDS: Final = 5.0
# Requests that Ray sends a replica beyond those it serves: it refuses them itself, with numbers, and answers health.
BESIDE: Final = 64
LOCAL: Final = {
    # Use gRPC between proxies and replicas instead of Ray's object store, which halves the time of a call.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # The limit of the proxies; a replica refuses requests that are too large itself.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # Seconds for each of three attempts to start a proxy: on a busy machine its imports take more than the default 5.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_log = logging.getLogger(__name__)


def application(settings: RaySettings) -> Application:
    """The application to give to `ray.serve.run`.

    Wherever its replicas run, they need `sonde[server,ray]` and the files that the settings name. The proxies forward
    its methods if Ray Serve was started by `start`, or with `sonde_server.ray.add_to_server` among its
    grpc_servicer_functions.
    """
    options: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        policy = {
            "target_requests": settings.target_requests,
            "target_queued_runs": settings.target_queued_runs,
        }
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=settings.target_requests,
                upscale_delay_s=settings.upscale_delay,
                downscale_delay_s=settings.downscale_delay,
                policy=AutoscalingPolicy(policy_function=QueuePolicy, policy_kwargs=policy),  # type: ignore[no-untyped-call]
            )
        }
    if os.environ.get(HAPROXY) != "1":
        # Otherwise HAProxy chooses replicas, and Ray refuses any other choice.
        router: dict[str, Any] = {
            "request_router_class": ROUTER,
            "request_router_kwargs": {"room": max(1, settings.workers - SPARE_WORKERS)},
        }
        options["request_router_config"] = RequestRouterConfig(**router)
    deployment: Any = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": _gpus(settings)},
        max_ongoing_requests=settings.workers + BESIDE,
        graceful_shutdown_timeout_s=settings.grace,
        health_check_period_s=HEALTH_SECONDS,
        **options,
    )
    bound: Application = deployment.bind(settings)
    return bound


def build(arguments: Mapping[str, Any]) -> Application:
    """The application for a configuration file of Ray Serve, or for `serve run sonde_server.ray:build model=gpt2`.

    Arguments have the names of the settings, and take precedence over the SONDE_... variables of this process.

    Raises SettingError.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items() if not isinstance(value, bool)]
    for name, value in arguments.items():
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
    return application(RaySettings.from_environment_and_flags(flags))


def start(settings: RaySettings) -> None:
    """Start Ray Serve with gRPC proxies on the current cluster. If it runs already, it is not changed."""
    options = gRPCOptions(
        port=settings.port,
        grpc_servicer_functions=[SERVICER_FUNCTION],
        enable_reflection=settings.reflection,
    )
    serve.start(grpc_options=options)


def run(settings: RaySettings) -> int:
    """Serve until SIGTERM or SIGINT, as `sonde-server ray` does. Returns the exit code.

    Raises RuntimeError if no replica starts.
    """
    joined = "RAY_ADDRESS" in os.environ
    if not joined:
        for name, value in LOCAL.items():
            os.environ.setdefault(name, value)
    stopping = threading.Event()
    ray.init(include_dashboard=None if joined else False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        start(settings)
        _deploy(settings)
        _log.info("serving %s on Ray, at port %d of every machine with a proxy", settings.model, settings.port)
        stopping.wait()
        serve.delete(settings.application)
    finally:
        ends: list[Callable[[], None]] = [ray.shutdown] if joined else [serve.shutdown, ray.shutdown]
        for end in ends:
            end()
    return 0


def _deploy(settings: RaySettings) -> None:
    """Raises RuntimeError with the error of a replica, which Ray only writes to its log."""
    try:
        serve.run(application(settings), name=settings.application, route_prefix=f"/{settings.application}")
    except (RuntimeError, RayServeException) as error:
        deployed = serve.status().applications.get(settings.application)
        told = [one.message for one in deployed.deployments.values()] if deployed is not None else []
        lines = [line.strip() for message in (*told, str(error)) for line in message.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("RuntimeError: ") and "Traceback" not in line]
        reason = said[-1] if said else lines[-1]
        raise RuntimeError(reason.removeprefix("RuntimeError: ")) from None


def _gpus(settings: RaySettings) -> float:
    if settings.gpus_per_replica is not None:
        return settings.gpus_per_replica
    if settings.device == "cpu":
        return 0.0
    if settings.device.startswith("cuda"):
        return 1.0
    resources: Callable[[], dict[str, float]] = ray.cluster_resources
    return 1.0 if ray.is_initialized() and resources().get("GPU") else 0.0
