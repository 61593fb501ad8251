"""The server: listens at once, loads the model, serves it, and goes without dropping what is in progress."""

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
"""How long before a shutdown health tells of it: a call that is on its way in that very moment would be broken off."""
LAST_WORDS_SECONDS = 1.0
"""How long a shutdown gives answers that are done to be sent."""
_HEALTH_WORKERS = 2

_log = logging.getLogger(__name__)


class Server:
    """A server of one model.

    As a context manager it starts, and stops without grace. Health is NOT_SERVING from the moment the port is
    bound until a warm-up pass has run, and again from the beginning of the shutdown.
    """

    def __init__(self, settings: Settings, on_failure: Callable[[], None] | None = None) -> None:
        """Raises TokenFileError and CertificateError. `on_failure` is called when the model cannot run any more."""
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
        """Where it listens, such as "127.0.0.1:43211"."""
        if self._port is None:
            raise RuntimeError("the server does not listen yet")
        return _join(self.settings.host, self._port)

    @property
    def metrics_address(self) -> str:
        """Where Prometheus is answered."""
        if self._metrics is None or self._metrics.port is None:
            raise RuntimeError("the server has no port for metrics, or does not listen yet")
        return _join(self.settings.host, self._metrics.port)

    @property
    def health_address(self) -> str:
        """Where health alone is answered."""
        if self._health_port is None:
            raise RuntimeError("the server has no port for health alone, or does not listen yet")
        return _join(self.settings.host, self._health_port)

    @property
    def endpoint(self) -> "Endpoint":
        """Where its own process asks, without a socket; it need not listen for that."""
        from ..in_process.channel import Endpoint

        return Endpoint(self._servicer, self._interceptors)

    @property
    def model(self) -> "PreTrainedModel":
        """The hosted torch module."""
        if self._loaded is None:
            raise RuntimeError("the server has loaded no model yet")
        return self._loaded.decoder.model

    @property
    def scheduler(self) -> "Scheduler":
        """Who owns the model's thread."""
        if self._scheduler is None:
            raise RuntimeError("the server has loaded no model yet")
        return self._scheduler

    def listen(self) -> None:
        """Binds the port and answers calls, all but health and reflection with NotServing. Raises OSError."""
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
                options=[("grpc.so_reuseport", 0)],
            )
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
            self._health_port = _bind(self._probes, settings.host, settings.health_port, None)
            self._probes.start()
        if settings.metrics_port is not None:
            self.publish(settings.metrics_port)
        self._grpc.start()
        _log.info("listening on %s", self.address)
        if self._tokens is not None and credentials is None and not is_loopback(settings.host):
            _log.warning("tokens travel unencrypted: give --tls-cert and --tls-key, unless a proxy in front encrypts")

    def publish(self, port: int) -> None:
        """Answers Prometheus on a port, if the settings have one at all. Raises OSError."""
        if self._metrics is None:
            return
        try:
            self._metrics.serve(self.settings.host, port)
        except OSError as error:
            raise OSError(f"cannot listen on {_join(self.settings.host, port)}: {error.strerror}") from error

    def reload(self) -> None:
        """Reads tokens and certificates again; a file that cannot be used is logged, and what was read before stays."""
        for name, source in (("tokens", self._tokens), ("certificates", self._certificates)):
            try:
                if source is not None:
                    source.reload()
                    _log.info("read the %s again", name)
            except (TokenFileError, CertificateError) as error:
                _log.error("kept the %s as they were: %s", name, error)

    def load(self) -> None:
        """Loads the model and runs it once; then the server is SERVING. Raises UnsupportedModel."""
        # These bring torch along, which takes seconds: the port is bound before.
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
        # What failed is not offered.
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
        """The engine, once it has been held to the model itself and has run. Raises UnsupportedModel."""
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
        """Listens, then loads. Raises OSError and UnsupportedModel, and has stopped then."""
        try:
            self.listen()
            self.load()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace: float | None = None) -> None:
        """Says NOT_SERVING, turns new calls away, gives those in progress time, then stops them and the model.

        `grace` (as set) is how many seconds that takes at most; callers who watch health have heard before calls are
        turned away, unless it is 0.
        """
        if self._stopped:
            return
        self._stopped = True
        self._health.enter_graceful_shutdown()
        grace = self.settings.grace if grace is None else grace
        announced = min(ANNOUNCED_SECONDS, grace)
        time.sleep(announced)
        closed = self._grpc.stop(grace - announced)
        # What is not in progress here is not waited for: streams of health, which never end, and a call that came just
        # as the port was closed, which gRPC now and then neither hands over nor refuses.
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
        # What comes first begins first and ends last: the log line has the trace that telemetry began.
        watchers = (self._telemetry, self._metrics, CallLog())
        return [watcher for watcher in watchers if watcher is not None]

    def _on_batch(self, rows: int) -> None:
        if self._metrics is not None:
            self._metrics.batch(rows)

    def _run_once(self) -> None:
        """The smallest pass of the model, by the way that questions take."""
        never = threading.Event()
        deadline = time.monotonic() + PROBE_SECONDS
        with self.scheduler.session(caller="probe", cancelled=never, deadline=deadline) as session:
            session.call(session.engine.warm_up)

    def _fail(self) -> None:
        """The process is of no use any more: nobody is let in, and whoever runs it is told."""
        self.failed = True
        self._health.enter_graceful_shutdown()
        self._servicer.host(None)
        if self._on_failure is not None:
            self._on_failure()

    def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


def _telemetry() -> "Telemetry":
    # An extra.
    from .telemetry import Telemetry

    return Telemetry(__version__)


def _options(settings: Settings) -> list[tuple[str, int]]:
    age = settings.max_connection_age
    return [
        *([] if age is None else [("grpc.max_connection_age_ms", round(1000 * age))]),
        # Two servers on one port would share its calls unnoticed.
        ("grpc.so_reuseport", 0),
        # What is a little too large is refused by a guard, with the numbers; what is much too large is not even taken.
        ("grpc.max_receive_message_length", min(2 * settings.max_request_bytes, 2**31 - 1)),
        # A caller whose machine has vanished is noticed, and what it asked for is dropped.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.max_concurrent_streams", 256),
    ]


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """The port that it listens on. Raises OSError."""
    wanted = _join(host, port)
    try:
        return server.add_insecure_port(wanted) if credentials is None else server.add_secure_port(wanted, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {wanted}: the port is in use or the address is not this machine's") from error


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
