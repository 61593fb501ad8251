"""Prometheus metrics, on a port of their own. Authenticated callers appear by name; secrets never appear."""

from collections.abc import Callable, Iterator
from typing import Final

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from ..questions.places import ModelDescription
from ..sharing.statistics import Statistics
from .guards.calls import Call

_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_COUNTED: Final = {
    "batches": "Forward passes over several runs together.",
    "rows": "Runs in these passes.",
    "token_layers": "Positions x blocks that were computed.",
    "token_layers_saved": "Positions x blocks that did not have to be computed because runs restart from kept states.",
    "cache_hits": "Unchanged runs that were found in the cache.",
    "cache_misses": "Unchanged runs that had to be computed.",
}
_MEASURED: Final = {
    "waiting_runs": "Runs of accepted requests that are not done yet.",
    "cache_bytes": "Bytes of the cache of unchanged runs.",
    "device_bytes": "Bytes of the device's memory in use by this process; 0 on a CPU.",
    "device_total_bytes": "Bytes of memory that the device has; 0 on a CPU.",
}


class Metrics:
    """An observer of calls, which also reports the statistics of the model's thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._statistics: Callable[[], Statistics] | None = None
        self._model: ModelDescription | None = None
        self._version = ""
        self._requests = Counter(
            "sonde_requests", "Requests that have ended.", ["method", "code", "caller"], registry=self._registry
        )
        self._seconds = Histogram(
            "sonde_request_seconds", "Duration of requests.", ["method"], buckets=_SECONDS, registry=self._registry
        )
        self._in_progress = Gauge(
            "sonde_requests_in_progress", "Requests that have not ended yet.", ["method"], registry=self._registry
        )
        self._runs = Counter("sonde_runs", "Runs that were requested.", ["caller"], registry=self._registry)
        self._rows = Histogram("sonde_batch_rows", "Runs in a batch.", buckets=_ROWS, registry=self._registry)
        for collector in (ProcessCollector, PlatformCollector):
            collector(registry=self._registry)
        self._registry.register(self)
        self._stop: Callable[[], None] | None = None
        self.port: int | None = None

    def serve(self, host: str, port: int) -> None:
        """Start to answer Prometheus. Raises OSError."""
        server, thread = start_http_server(port, addr=host.strip("[]"), registry=self._registry)
        self.port = int(server.server_port)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop

    def stop(self) -> None:
        """Stop to answer Prometheus."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def watch(self, model: ModelDescription, version: str, statistics: Callable[[], Statistics]) -> None:
        """Report these statistics from now on."""
        self._model, self._version, self._statistics = model, version, statistics

    # ------------------------------------------------------------ calls

    def began(self, call: Call) -> None:
        """Count a call as in progress."""
        self._in_progress.labels(call.name).inc()

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that has ended."""
        # Hosts are left out: their number is unlimited.
        caller = call.caller if call.authenticated else ""
        self._in_progress.labels(call.name).dec()
        self._requests.labels(call.name, code.name, caller).inc()
        self._seconds.labels(call.name).observe(seconds)
        if call.runs:
            self._runs.labels(caller).inc(call.runs)

    def batch(self, rows: int) -> None:
        """Count a batch."""
        self._rows.observe(rows)

    # ------------------------------------------------------------ statistics

    def collect(self) -> Iterator[Metric]:
        """The metrics of the model's thread, for the registry."""
        if self._statistics is None or self._model is None:
            return
        numbers, model = self._statistics(), self._model
        for name, text in _COUNTED.items():
            yield CounterMetricFamily(f"sonde_{name}", text, value=getattr(numbers, name))
        for name, text in _MEASURED.items():
            yield GaugeMetricFamily(f"sonde_{name}", text, value=getattr(numbers, name))
        info = GaugeMetricFamily(
            "sonde_info",
            "The hosted model, as labels; always 1.",
            labels=["version", "model", "revision", "data_type", "device"],
        )
        info.add_metric([self._version, model.name, model.revision, model.data_type, model.device], 1)
        yield info
