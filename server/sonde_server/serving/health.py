"""The health service, with watchers who come and go while it is told something new."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class HealthService(health.HealthServicer):  # type: ignore[misc]  # grpcio's package has no types
    """grpcio's own, whose end of a watch does not hold up the server.

    While it tells watchers of a change it holds its lock and waits until gRPC's one thread of events has sent that. The
    same thread calls it when a watcher has gone, and would wait for the lock: no call of the server would ever go on
    (seen in grpcio-health-checking 1.85.1). So what is done for a watcher who has gone is done by a thread of its own.
    """

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Any:
        """Tells the status of a service, and every change of it."""
        return super().Watch(request, _Handing(context), send_response_callback)


class _Handing:
    """As much of a call's context as a watch needs."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has it called, by a thread of its own, when the call is over; it may be over already."""

        def hand_on() -> None:
            threading.Thread(target=callback, name="sonde-watch-over", daemon=True).start()

        if not self._context.add_callback(hand_on):
            hand_on()
        return True
