"""One replica: the server without its socket, asked by Ray instead of gRPC."""

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
"""With a model that does not run there is little to wait for."""
METRICS_PORTS: Final = 64
"""The replicas of a machine answer Prometheus on as many ports at most."""
_END: Final = object()

_log = logging.getLogger(__name__)


class Replica:
    """What Ray Serve makes its replicas of. Methods are called with requests as bytes, and answer with messages."""

    def __init__(self, settings: RaySettings) -> None:
        """Loads the model. Raises RuntimeError where it cannot be hosted, and says why."""
        configure(settings.log_format)
        self._settings = settings
        try:
            self._server = Server(settings, on_failure=self._leave)
            self._server.load()
            # With torch, which the proxies, who read this file too, do without.
            from ..sharing.scheduler import leave_the_cores_to_the_model

            leave_the_cores_to_the_model()
            self._publish()
        except (UnsupportedModel, TokenFileError, OSError) as error:
            self._stop()
            # Ray keeps the text of a RuntimeError.
            raise RuntimeError(f"the model cannot be hosted: {error}") from None
        except BaseException:
            self._stop()
            raise
        self._endpoint = self._server.endpoint
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="sonde-call")
        self._tokens_read = self._tokens_changed()

    # ------------------------------------------------------------------ what callers ask

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
        """Answers the health service: whether there is a replica that serves."""
        asked = health_pb2.HealthCheckRequest.FromString(request) if isinstance(request, bytes) else request
        if asked.service not in ("", SERVICE):
            unknown = status_pb2.Status(code=code_pb2.NOT_FOUND, message="there is no such service here")
            answer: Any = rpc_status.to_status(unknown)
            return _ending(answer.code, answer.details, answer.trailing_metadata, grpc_context)
        states = health_pb2.HealthCheckResponse
        return states(status=states.NOT_SERVING if self._server.failed else states.SERVING)

    async def _answers(self, name: str, request: Any, told: Any) -> AsyncIterator[Any]:
        """Serves one call by the way that calls of this process take, each step on a thread of the pool."""
        context = Context(told.invocation_metadata(), _seconds_left(told), told.peer())
        call: Call[Any] = Call(self._endpoint, f"/{SERVICE}/{name}", request, context)
        loop = asyncio.get_running_loop()
        try:
            while (message := await loop.run_in_executor(self._pool, next, call, _END)) is not _END:
                yield message
        except CallError as error:
            yield _ending(error.code(), error.details(), error.trailing_metadata(), told)
        finally:
            # Also when Ray cancels it because the caller is gone: the model stops before its next block.
            call.cancel()

    # ------------------------------------------------------------------ what Ray asks

    async def check_health(self) -> None:
        """Raises when the model cannot run any more: Ray then starts another replica instead."""
        if self._server.failed:
            raise RuntimeError("the model does not run any more")
        changed = self._tokens_changed()
        if changed != self._tokens_read:
            self._tokens_read = changed
            self._server.reload()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy of autoscaling looks at."""
        return {QUEUED_RUNS: float(self._server.scheduler.queued_runs)}

    def __del__(self) -> None:
        """Ray's last call: no request is in progress any more."""
        self._stop()

    def _stop(self) -> None:
        server: Server | None = getattr(self, "_server", None)
        if server is not None:
            server.stop(0)

    def _publish(self) -> None:
        """Answers Prometheus on the first free port from the one that is set; other replicas may be on this machine."""
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
        """When the file of tokens was written; SIGHUP reaches no replica."""
        if self._settings.tokens is None:
            return 0.0
        try:
            return Path(self._settings.tokens).stat().st_mtime
        except OSError:
            return 0.0

    def _leave(self) -> None:
        """Ends the process, as a server whose model is lost does; Ray puts another in its place."""
        timer = threading.Timer(FAILED_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()


class Nothing:
    """Stands where an error leaves no message: Ray tells the status of a call only together with one.

    The proxy takes it out again; where it is not ours, callers see an empty message before the error.
    """

    def SerializeToString(self) -> bytes:
        """No field is set."""
        return b""


def _ending(code: grpc.StatusCode, details: str, trailing_metadata: Metadata, told: Any) -> Nothing:
    """What ends a call with an error, and brings its details along."""
    told.set_code(code)
    told.set_details(details)
    told.set_trailing_metadata(list(trailing_metadata))
    return Nothing()


def _seconds_left(told: Any) -> float | None:
    """How long the caller waits, as the proxy was told."""
    for key, value in told.invocation_metadata():
        if key == TIMEOUT_KEY:
            return float(value)
    return None
