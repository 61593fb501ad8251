"""The health service, made safe for watchers that leave while the status changes."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class HealthService(health.HealthServicer):  # type: ignore[misc]  # grpcio's package has no types
    """grpcio's servicer, without a deadlock at the end of a watch.

    While it notifies watchers of a change, it holds its lock and waits until gRPC's event thread has sent the message.
    The same thread calls it when a watcher has left, and would wait for the lock: the whole server would stop (seen in
    grpcio-health-checking 1.85.1). So the callback for a watcher that has left runs on a thread of its own.
    """

    def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Any:
        """Send the status of a service, and every change of it."""
        return super().Watch(request, _Handing(context), send_response_callback)


class _Handing:
    """The part of a call's context that a watch needs."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on a thread of its own when the call is over; it may be over already."""

        def hand_on() -> None:
            threading.Thread(target=callback, name="sonde-watch-over", daemon=True).start()

        if not self._context.add_callback(hand_on):
            hand_on()
        return True
