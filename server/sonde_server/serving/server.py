"""The server: listens at once, loads the model, serves it, and shuts down without dropping calls in progress."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sonde._version import __version__
from sonde.v1 import inspection_pb2
from sonde.v1.inspection_pb2_grpc import add_InspectionServiceServicer_to_server

from ..config import Settings, is_loopback
from ..sharing.quota import RunQuota
from .certificates import CertificateError, Certificates
from .faults import Probe, translate
from .guards import AdmissionGuard, AuthenticationGuard, ErrorGuard, Observer, RequestGuard, WatchGuard
from .health import HealthService
from .logs import CallLog
from .metrics import Metrics
from .service import Hosted, InspectionServicer
from .tokens import TokenFileError, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..engine import Engine
    from ..in_process.channel import Endpoint
    from ..model.loading import LoadedModel
    from ..sharing.scheduler import Scheduler
    from .telemetry import Telemetry

SERVICE = inspection_pb2.DESCRIPTOR.services_by_name["InspectionService"].full_name
PROBE_SECONDS = 60.0
ANNOUNCED_SECONDS = 0.5
"""How long health announces a shutdown before calls are refused, so that calls on their way are not dropped."""
LAST_WORDS_SECONDS = 1.0
"""How long a shutdown waits for finished answers to be sent."""
PINGS_ALLOWED = ("grpc.http2.max_ping_strikes", 0)
"""Clients may ping while they wait. By default gRPC closes a connection after a few pings without data in between, and
clients in Go with keepalive ping every 10 seconds."""
_HEALTH_WORKERS = 2

_log = logging.getLogger(__name__)


class Server:
    """A server of one model.

    As a context manager it starts, and stops without a grace period. Health is NOT_SERVING from the moment the port is
    bound until a warm-up pass has run, and again from the beginning of the shutdown.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None] | None = None) -> None:
        """Raises TokenFileError and CertificateError. `on_failure` is called when the model no longer runs."""
        self.settings = settings
        self.failed = False
        self._on_failure = on_failure
        self._probe = Probe(self._run_once, self._fail)
        self._tokens = None if settings.tokens is None else Tokens(settings.tokens)
        self._certificates = _certificates(settings)
        self._health = HealthService()
        self._servicer = InspectionServicer()
        self._admission = AdmissionGuard(
            frozenset(f"/{SERVICE}/{name}" for name in ("Trace", "Intervene")),
            workers=settings.workers,
            most=settings.max_requests,
            seconds=settings.max_seconds,
        )
        self._metrics = Metrics() if settings.metrics_port is not None else None
        self._telemetry = _telemetry() if settings.telemetry else None
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="sonde-call")
        self._interceptors: list[grpc.ServerInterceptor] = [
            WatchGuard(self._observers()),
            ErrorGuard(translate=translate, unexpected=self._probe.suspect),
            AuthenticationGuard(self._tokens),
            self._admission,
            RequestGuard(settings.max_request_bytes),
        ]
        self._grpc = grpc.server(self._pool, interceptors=self._interceptors, options=_options(settings))
        self._probes: grpc.Server | None = None
        self._loaded: LoadedModel | None = None
        self._scheduler: Scheduler | None = None
        self._port: int | None = None
        self._health_port: int | None = None
        self._stopped = False

    @property
    def address(self) -> str:
        """The address that it listens on, such as "127.0.0.1:43211"."""
        if self._port is None:
            raise RuntimeError("the server is not listening yet")
        return _join(self.settings.host, self._port)

    @property
    def metrics_address(self) -> str:
        """The address for Prometheus."""
        if self._metrics is None or self._metrics.port is None:
            raise RuntimeError("the server has no metrics port, or is not listening yet")
        return _join(self.settings.host, self._metrics.port)

    @property
    def health_address(self) -> str:
        """The address for health checks only."""
        if self._health_port is None:
            raise RuntimeError("the server has no health port, or is not listening yet")
        return _join(self.settings.host, self._health_port)

    @property
    def endpoint(self) -> "Endpoint":
        """The endpoint for calls from this process, without a socket; the server need not listen for them."""
        from ..in_process.channel import Endpoint

        return Endpoint(self._servicer, self._interceptors)

    @property
    def model(self) -> "PreTrainedModel":
        """The hosted torch module."""
        if self._loaded is None:
            raise RuntimeError("the server has not loaded its model yet")
        return self._loaded.decoder.model

    @property
    def scheduler(self) -> "Scheduler":
        """The owner of the model's thread."""
        if self._scheduler is None:
            raise RuntimeError("the server has not loaded its model yet")
        return self._scheduler

    def listen(self) -> None:
        """Bind the port and answer calls, all but health and reflection with NotServing. Raises OSError."""
        settings = self.settings
        add_InspectionServiceServicer_to_server(self._servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        credentials = None if self._certificates is None else self._certificates.credentials()
        self._port = _bind(self._grpc, settings.host, settings.port, credentials)
        if settings.health_port is not None:
            self._probes = grpc.server(
                ThreadPoolExecutor(_HEALTH_WORKERS, thread_name_prefix="sonde-health"),
                options=[("grpc.so_reuseport", 0), PINGS_ALLOWED],
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
            self._health_port = _bind(self._probes, settings.host, settings.health_port, None)
            self._probes.start()
        if settings.metrics_port is not None:
            self.publish(settings.metrics_port)
        self._grpc.start()
        _log.info("listening on %s", self.address)
        if self._tokens is not None and credentials is None and not is_loopback(settings.host):
            _log.warning("tokens are sent unencrypted: set --tls-cert and --tls-key, unless a proxy in front encrypts")

    def publish(self, port: int) -> None:
        """Answer Prometheus on a port, if the settings enable metrics. Raises OSError."""
        if self._metrics is None:
            return
        try:
            self._metrics.serve(self.settings.host, port)
        except OSError as error:
            raise OSError(f"cannot listen on {_join(self.settings.host, port)}: {error.strerror}") from error

    def reload(self) -> None:
        """Reload tokens and certificates. An invalid file is logged, and the previous content stays in use."""
        for name, source in (("tokens", self._tokens), ("certificates", self._certificates)):
            try:
                if source is not None:
                    source.reload()
                    _log.info("reloaded the %s", name)
            except (TokenFileError, CertificateError) as error:
                _log.error("kept the previous %s: %s", name, error)

    def load(self) -> None:
        """Load the model and run it once; then the server is SERVING. Raises UnsupportedModel."""
        _log.info("loading %s", self.settings.model)
        # These import torch, which takes seconds: the port is bound before.
        from .. import methods
        from ..sharing.scheduler import Scheduler

        settings = self.settings
        self._scheduler = Scheduler(
            self._engine,
            max_queued_runs=settings.max_queued_runs,
            max_queued_bytes=settings.max_queued_bytes,
            on_batch=self._on_batch,
        )
        assert self._loaded is not None
        loaded = self._loaded
        # Without the components that failed the check.
        description = dataclasses.replace(loaded.description, unavailable=dict(loaded.decoder.unavailable))
        if self._metrics is not None:
            self._metrics.watch(description, __version__, self._scheduler.statistics)
        self._servicer.host(
            Hosted(
                description,
                loaded.vocabulary,
                settings.limits,
                RunQuota(settings.max_runs_per_second),
                __version__,
                self._scheduler,
                methods.trace,
                methods.intervene,
            )
        )
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "serving %s (%s, %s parameters, %s) on %s",
            description.name,
            description.architecture,
            f"{description.parameters:,}",
            description.data_type,
            description.device,
        )

    def _engine(self) -> "Engine":
        """Load the engine, check its results against the original model, and run it once. Raises UnsupportedModel."""
        from ..engine import Engine
        from ..engine.selfcheck import verify
        from ..model.loading import load

        settings = self.settings
        self._loaded = load(
            settings.model,
            revision=settings.revision,
            device=settings.device,
            dtype=settings.dtype,
            device_map=settings.device_map,
            pack_weights=settings.pack_weights,
        )
        engine = Engine(self._loaded.decoder, cache_bytes=settings.cache_bytes)
        verify(engine)
        engine.warm_up()
        return engine

    def start(self) -> None:
        """Listen, then load. Raises OSError and UnsupportedModel, after the server has stopped again."""
        try:
            self.listen()
            self.load()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace: float | None = None) -> None:
        """Report NOT_SERVING, refuse new calls, wait for those in progress, then stop them and the model.

        `grace` is the maximum wait in seconds, by default that of the settings. Unless it is 0, health watchers are
        notified before calls are refused.
        """
        if self._stopped:
            return
        self._stopped = True
        self._servicer.announce_shutdown()
        self._health.enter_graceful_shutdown()
        grace = self.settings.grace if grace is None else grace
        announced = min(ANNOUNCED_SECONDS, grace)
        time.sleep(announced)
        closed = self._grpc.stop(grace - announced)
        # Wait only for calls that the guards have admitted: health streams never end, and gRPC sometimes neither hands
        # over nor refuses a call that arrives just as the port is closed.
        self._admission.wait_until_idle(grace - announced)
        closed.wait(min(LAST_WORDS_SECONDS, grace))
        self._grpc.stop(None).wait()
        if self._probes is not None:
            self._probes.stop(None).wait()
        self._servicer.host(None)
        if self._scheduler is not None:
            self._scheduler.stop()
        self._pool.shutdown()
        self._admission.stop()
        for watcher in (self._metrics, self._telemetry):
            if watcher is not None:
                watcher.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(0)

    def _observers(self) -> list[Observer]:
        # The first observer begins first and ends last, so that the log line has the trace id that telemetry began.
        watchers = (self._telemetry, self._metrics, CallLog())
        return [watcher for watcher in watchers if watcher is not None]

    def _on_batch(self, rows: int) -> None:
        if self._metrics is not None:
            self._metrics.batch(rows)

    def _run_once(self) -> None:
        """Run the smallest pass of the model, through the queue as questions do."""
        from ..sharing.driving import complete

        never = threading.Event()
        deadline = time.monotonic() + PROBE_SECONDS
        with self.scheduler.session(caller="probe", cancelled=never, deadline=deadline) as session:
            complete(session.call(session.engine.warm_up), session)

    def _fail(self) -> None:
        """Refuse all calls from now on, and report that this process has to be replaced."""
        self.failed = True
        self._servicer.announce_shutdown()
        self._health.enter_graceful_shutdown()
        self._servicer.host(None)
        if self._on_failure is not None:
            self._on_failure()

    def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


def _telemetry() -> "Telemetry":
    # OpenTelemetry is an extra.
    from .telemetry import Telemetry

    return Telemetry(__version__)


def _options(settings: Settings) -> list[tuple[str, int]]:
    age = settings.max_connection_age
    return [
        *([] if age is None else [("grpc.max_connection_age_ms", round(1000 * age))]),
        # Otherwise two servers on one port would share its calls unnoticed.
        ("grpc.so_reuseport", 0),
        # A guard refuses requests that are too large, with both numbers; gRPC refuses those that are much too large.
        ("grpc.max_receive_message_length", min(2 * settings.max_request_bytes, 2**31 - 1)),
        # Notice clients whose machine has vanished, and drop their work.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        PINGS_ALLOWED,
        ("grpc.max_concurrent_streams", 256),
    ]


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Bind a port and return it. Raises OSError."""
    wanted = _join(host, port)
    try:
        return server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        raise OSError(
            f"cannot listen on {wanted}: the port is in use, or the address does not belong to this machine"
        ) from error


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
