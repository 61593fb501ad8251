"""The server: listens at once, loads the model, serves it, and goes without dropping what is in progress."""

import logging
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sonde._version import __version__
from sonde.v1 import inspection_pb2
from sonde.v1.inspection_pb2_grpc import add_InspectionServiceServicer_to_server

from .config import Settings
from .guards import ErrorGuard
from .service import Hosted, InspectionServicer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .in_process.channel import Endpoint
    from .model.loading import LoadedModel
    from .scheduler import Scheduler

SERVICE = inspection_pb2.DESCRIPTOR.services_by_name["InspectionService"].full_name
# Requests carry tensors: noise to replay, directions, values to set.
LARGEST_REQUEST = 64 << 20

_log = logging.getLogger(__name__)


class Server:
    """A server of one model.

    As a context manager it starts, and stops without grace. Health is NOT_SERVING from the moment the port is
    bound until a warm-up pass has run, and again from the beginning of the shutdown.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._health = health.HealthServicer()
        self._servicer = InspectionServicer()
        self._interceptors: list[grpc.ServerInterceptor] = [ErrorGuard(f"/{SERVICE}/")]
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="sonde-call")
        self._grpc = grpc.server(
            self._pool,
            interceptors=self._interceptors,
            # Two servers on one port would share its calls unnoticed.
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LARGEST_REQUEST)],
        )
        self._loaded: LoadedModel | None = None
        self._scheduler: Scheduler | None = None
        self._port: int | None = None
        self._stopped = False

    @property
    def address(self) -> str:
        """Where it listens, such as "127.0.0.1:43211"."""
        if self._port is None:
            raise RuntimeError("the server does not listen yet")
        return _join(self.settings.host, self._port)

    @property
    def endpoint(self) -> "Endpoint":
        """Where its own process asks, without a socket; it need not listen for that."""
        from .in_process.channel import Endpoint

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
        wanted = _join(self.settings.host, self.settings.port)
        add_InspectionServiceServicer_to_server(self._servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if self.settings.reflection:
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            self._port = self._grpc.add_insecure_port(wanted)
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {wanted}: the port is in use or the address is not this machine's"
            ) from error
        self._grpc.start()
        _log.info("listening on %s", self.address)

    def load(self) -> None:
        """Loads the model and runs it once; then the server is SERVING. Raises UnsupportedModel."""
        # These bring torch along, which takes seconds: the port is bound before.
        from . import methods
        from .engine import Engine
        from .model.loading import load
        from .scheduler import Scheduler

        settings = self.settings
        loaded = load(settings.model, revision=settings.revision, device=settings.device, dtype=settings.dtype)
        self._loaded = loaded
        engine = Engine(loaded.decoder, cache_bytes=settings.cache_bytes)
        engine.warm_up()
        self._scheduler = Scheduler(engine)
        self._servicer.host(
            Hosted(
                loaded.description,
                loaded.vocabulary,
                settings.limits,
                __version__,
                self._scheduler,
                methods.trace,
                methods.intervene,
            )
        )
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        description = loaded.description
        _log.info(
            "serving %s (%s, %s parameters, %s) on %s",
            description.name,
            description.architecture,
            f"{description.parameters:,}",
            description.data_type,
            description.device,
        )

    def start(self) -> None:
        """Listens, then loads. Raises OSError and UnsupportedModel, and has stopped then."""
        try:
            self.listen()
            self.load()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace: float | None = None) -> None:
        """Turns new calls away, gives those in progress `grace` seconds (as set), then stops them and the model."""
        if self._stopped:
            return
        self._stopped = True
        self._health.enter_graceful_shutdown()
        stopped = self._grpc.stop(self.settings.grace if grace is None else grace)
        stopped.wait()
        self._servicer.host(None)
        if self._scheduler is not None:
            self._scheduler.stop()
        self._pool.shutdown()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(0)

    def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
