"""One replica: the server without its socket, called by Ray instead of gRPC."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from ..errors import UnsupportedModel
from ..in_process.channel import Call
from ..in_process.context import CallError, Context, Metadata
from ..serving.logs import configure
from ..serving.server import SERVICE, Server
from ..serving.tokens import TokenFileError
from .proxying import TIMEOUT_KEY
from .scaling import QUEUED_RUNS
from .settings import RaySettings

FAILED_SECONDS: Final = 5.0
"""How long a replica whose model no longer runs waits before it exits."""
METRICS_PORTS: Final = 64
"""The number of ports that the replicas of a machine try for Prometheus."""
_END: Final = object()

_log = logging.getLogger(__name__)


class Replica:
    """The class of Ray Serve's replicas. Methods take requests as bytes, and return messages."""

    def __init__(self, settings: RaySettings) -> None:
        """Load the model. Raises RuntimeError if it cannot be hosted."""
        configure(settings.log_format)
        self._settings = settings
        try:
            self._server = Server(settings, on_failure=self._leave)
            self._server.load()
            # This imports torch, which the proxies, which also import this file, do not need.
            from ..sharing.scheduler import leave_the_cores_to_the_model

            leave_the_cores_to_the_model()
            self._publish()
        except (UnsupportedModel, TokenFileError, OSError) as error:
            self._stop()
            # Ray preserves the text of a RuntimeError.
            raise RuntimeError(f"the model cannot be hosted: {error}") from None
        except BaseException:
            self._stop()
            raise
        self._endpoint = self._server.endpoint
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="sonde-call")
        self._tokens_read = self._tokens_changed()

    # ------------------------------------------------------------------ methods of the service

    async def GetModel(self, request: Any, grpc_context: Any) -> Any:
        """Describes the hosted model."""
        messages = [message async for message in self._answers("GetModel", request, grpc_context)]
        return messages[-1]

    async def Trace(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """Reports how a prediction comes about."""
        async for message in self._answers("Trace", request, grpc_context):
            yield message

    async def Intervene(self, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """Reports what each intervention did to the prediction."""
        async for message in self._answers("Intervene", request, grpc_context):
            yield message

    async def Check(self, request: Any, grpc_context: Any) -> Any:
        """Answers the health service."""
        asked = health_pb2.HealthCheckRequest.FromString(request) if isinstance(request, bytes) else request
        if asked.service not in ("", SERVICE):
            unknown = status_pb2.Status(code=code_pb2.NOT_FOUND, message="unknown service")
            answer: Any = rpc_status.to_status(unknown)
            return _ending(answer.code, answer.details, answer.trailing_metadata, grpc_context)
        states = health_pb2.HealthCheckResponse
        return states(status=states.NOT_SERVING if self._server.failed else states.SERVING)

    async def _answers(self, name: str, request: Any, told: Any) -> AsyncIterator[Any]:
        """Serve one call through the in-process channel, each step on a thread of the pool."""
        context = Context(told.invocation_metadata(), _seconds_left(told), told.peer())
        call: Call[Any] = Call(self._endpoint, f"/{SERVICE}/{name}", request, context)
        loop = asyncio.get_running_loop()
        try:
            while (message := await loop.run_in_executor(self._pool, next, call, _END)) is not _END:
                yield message
        except CallError as error:
            yield _ending(error.code(), error.details(), error.trailing_metadata(), told)
        finally:
            # Also when Ray cancels the call because the caller is gone: the model stops before its next block.
            call.cancel()

    # ------------------------------------------------------------------ called by Ray

    async def check_health(self) -> None:
        """Raises RuntimeError if the model no longer runs: Ray then replaces this replica."""
        if self._server.failed:
            raise RuntimeError("the model no longer runs")
        changed = self._tokens_changed()
        if changed != self._tokens_read:
            self._tokens_read = changed
            self._server.reload()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The metrics for the autoscaling policy."""
        return {QUEUED_RUNS: float(self._server.scheduler.queued_runs)}

    def __del__(self) -> None:
        """Called by Ray at the end, when no request is in progress any more."""
        self._stop()

    def _stop(self) -> None:
        server: Server | None = getattr(self, "_server", None)
        if server is not None:
            server.stop(0)

    def _publish(self) -> None:
        """Answer Prometheus on the first free port from `metrics_port` on; this machine may have other replicas."""
        first = self._settings.metrics_port
        if first is None:
            return
        for port in range(first, first + METRICS_PORTS):
            try:
                self._server.publish(port)
            except OSError as error:
                if port == first + METRICS_PORTS - 1:
                    raise
                _log.debug("%s", error)
            else:
                _log.info("metrics of this replica are answered at %s", self._server.metrics_address)
                return

    def _tokens_changed(self) -> float:
        """The modification time of the token file. Replicas do not receive SIGHUP."""
        if self._settings.tokens is None:
            return 0.0
        try:
            return Path(self._settings.tokens).stat().st_mtime
        except OSError:
            return 0.0

    def _leave(self) -> None:
        """End the process, since its model no longer runs; Ray replaces it."""
        timer = threading.Timer(FAILED_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


class Nothing:
    """An empty message, sent before an error: Ray forwards the status of a call only together with a message.

    The proxy's handlers remove it. With Ray's own handlers, callers receive an empty message before the error.
    """

    def SerializeToString(self) -> bytes:
        """Return the bytes of a message without fields."""
        return b""


def _ending(code: grpc.StatusCode, details: str, trailing_metadata: Metadata, told: Any) -> Nothing:
    """Set the status of a call with its details, and return the message that has to go with it."""
    told.set_code(code)
    told.set_details(details)
    told.set_trailing_metadata(list(trailing_metadata))
    return Nothing()


def _seconds_left(told: Any) -> float | None:
    """How long the caller will wait, from the metadata that the proxy added."""
    for key, value in told.invocation_metadata():
        if key == TIMEOUT_KEY:
            return float(value)
    return None
