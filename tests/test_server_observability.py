"""What those who run a server can see of it: metrics, log lines and traces, asked for as their tools ask."""

import json
import logging
import re
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import sonde
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families
from sonde_server.config import Settings
from sonde_server.serving.logs import JsonFormatter
from sonde_server.serving.server import Server
from sonde_server.serving.tokens import make_token

from tests.support.models import save_model

PROMPT = [5, 130, 77, 301, 9]
DASHBOARD = Path(__file__).parents[1] / "examples" / "grafana.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("observability") / "llama")


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """Samples by name and labels."""

    def __init__(self, address: str) -> None:
        super().__init__()
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            self.text = answer.read().decode()
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                self[sample.name, frozenset(sample.labels.items())] = sample.value

    def of(self, name: str, **labels: str) -> float:
        return self.get((name, frozenset(labels.items())), 0.0)


def ask(client: sonde.Client) -> None:
    plan = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[3], positions=[-1])
    client.intervene(PROMPT, plan, targets=[41])


def test_metrics_count_what_was_done(model: Path, tmp_path: Path) -> None:
    token, line = make_token("alice")
    (tmp_path / "tokens").write_text(line)
    settings = Settings(
        model=str(model), port=0, device="cpu", metrics_port=0, tokens=str(tmp_path / "tokens"), max_prompt_tokens=9
    )
    with Server(settings) as server:
        with sonde.Client(server.address, token=token) as client:
            ask(client)
            first = Scrape(server.metrics_address)
            ask(client)
            with pytest.raises(sonde.InvalidRequest):
                client.trace(PROMPT * 2)
        with sonde.Client(server.address) as stranger, pytest.raises(sonde.Unauthenticated):
            ask(stranger)
        second = Scrape(server.metrics_address)
    assert second.of("sonde_requests_total", method="Intervene", code="OK", caller="alice") == 2
    assert second.of("sonde_requests_total", method="Trace", code="INVALID_ARGUMENT", caller="alice") == 1
    assert second.of("sonde_requests_total", method="Intervene", code="UNAUTHENTICATED", caller="") == 1
    assert second.of("sonde_requests_in_progress", method="Intervene") == 0
    assert second.of("sonde_request_seconds_count", method="Intervene") == 3
    assert second.of("sonde_runs_total", caller="alice") == 2 * 80
    # 80 neurons of block 3 of 5 at the last of 5 positions: two blocks at one position each, of 25. And the prediction
    # itself, which is read from what is kept of the unchanged run.
    assert (
        second.of("sonde_token_layers_saved_total") - first.of("sonde_token_layers_saved_total") == 80 * (25 - 2) + 25
    )
    assert second.of("sonde_token_layers_total") - first.of("sonde_token_layers_total") == 80 * 2
    assert second.of("sonde_rows_total") - first.of("sonde_rows_total") == 80
    assert second.of("sonde_batch_rows_sum") == second.of("sonde_rows_total")
    assert second.of("sonde_cache_hits_total") > first.of("sonde_cache_hits_total")
    assert second.of("sonde_cache_misses_total") == first.of("sonde_cache_misses_total")
    assert second.of("sonde_cache_bytes") > 0
    assert second.of("sonde_waiting_runs") == 0
    assert second.of("process_resident_memory_bytes") > 50e6
    assert token not in second.text


def test_metrics_are_there_before_the_model_is(model: Path) -> None:
    server = Server(Settings(model=str(model), port=0, device="cpu", metrics_port=0))
    try:
        server.listen()
        assert ("sonde_info" in Scrape(server.metrics_address).text) is False
        server.load()
        assert 'device="cpu"' in Scrape(server.metrics_address).text
    finally:
        server.stop(0)


def test_the_dashboard_shows_only_metrics_that_exist(model: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown += [one["query"] for one in dashboard["templating"]["list"]]
    names = {name for text in shown for name in re.findall(r"\b(?:sonde|process)_\w+", text)}
    with Server(Settings(model=str(model), port=0, device="cpu", metrics_port=0)) as server:
        with sonde.Client(server.address) as client:
            ask(client)
        there = {name for name, _ in Scrape(server.metrics_address)}
    assert len(names) > 12
    assert names <= there
    # And everything that is counted is shown.
    measured = {
        name for name in there if name.startswith("sonde_") and not name.endswith(("_created", "_sum", "_count"))
    }
    assert measured <= names


def test_a_json_line_has_what_is_known() -> None:
    record = logging.LogRecord("sonde", logging.ERROR, __file__, 1, "it %s\nthere", ("broke",), None)
    record.fields = {"code": "OK"}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["message"], read["code"]) == ("error", "it broke\nthere", "OK")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read["time"])


# ------------------------------------------------------------------ traces


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.came = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's names
        for resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.came.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield servicer
    server.stop(None).wait()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_call_is_a_span_in_its_callers_trace(model: Path, collector: Collector) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("a notebook")
    settings = Settings(model=str(model), port=0, device="cpu", telemetry=True)
    with Server(settings) as server, sonde.Client(server.address) as client:
        with tracer.start_as_current_span("analysis") as span:
            mine = span.get_span_context()
            ask(client)
        with pytest.raises(sonde.InvalidRequest):
            client.trace([10**6])
    provider.shutdown()
    assert collector.came.is_set()
    told = {span.name.rpartition("/")[2]: span for span in collector.spans}
    assert set(told) == {"Intervene", "Trace"}
    assert int.from_bytes(told["Intervene"].trace_id, "big") == mine.trace_id
    assert int.from_bytes(told["Intervene"].parent_span_id, "big") == mine.span_id
    assert told["Trace"].parent_span_id == b""
    known = attributes(told["Intervene"])
    assert (known["rpc.system"], known["rpc.grpc.status_code"], known["sonde.runs"]) == ("grpc", 0, 80)
    # The caller's own mistake is no error of the server.
    assert attributes(told["Trace"])["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert told["Trace"].status.code == 0
    assert collector.resources[0]["service.name"] == "sonde"
    assert trace.get_current_span().get_span_context().is_valid is False
