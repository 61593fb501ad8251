"""OpenTelemetry: a span for every call, within the caller's trace. Configured by the standard OTEL_... variables."""

import threading
from typing import Final

import grpc
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from .guards.calls import Call

# Errors that the caller caused are not errors of the server.
_FAULTS: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE})


class Telemetry:
    """An observer that makes a span for every call."""

    def __init__(self, version: str) -> None:
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
        named = Resource.create()
        unnamed = str(named.attributes[SERVICE_NAME]).startswith("unknown_service")
        ours = {SERVICE_VERSION: version} | ({SERVICE_NAME: "sonde"} if unnamed else {})
        resource = named.merge(Resource(ours))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("sonde_server", version)
        self._spans: dict[str, Span] = {}
        self._lock = threading.Lock()

    def began(self, call: Call) -> None:
        """Begin the span, as a child of the span that the caller's W3C trace context names."""
        service, _, method = call.method.lstrip("/").rpartition("/")
        span = self._tracer.start_span(
            call.method.lstrip("/"),
            context=propagate.extract(call.metadata),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "sonde.request_id": call.id,
            },
        )
        call.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        with self._lock:
            self._spans[call.id] = span

    def ended(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:  # noqa: ARG002 - the span has a clock
        """End the span."""
        with self._lock:
            span = self._spans.pop(call.id)
        span.set_attribute("rpc.grpc.status_code", int(code.value[0]))
        span.set_attribute("sonde.caller", call.caller)
        span.set_attribute("sonde.runs", call.runs)
        if code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR, code.name))
        span.end()

    def stop(self) -> None:
        """Send the remaining spans and shut down."""
        self._provider.shutdown()
