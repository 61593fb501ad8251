"""The list of metrics, from what they answer to Prometheus after one call of each kind of event."""

import urllib.request
from collections.abc import Iterable

import grpc
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sonde_server.questions.places import ModelDescription
from sonde_server.serving.guards.calls import Call
from sonde_server.serving.metrics import Metrics
from sonde_server.sharing.statistics import Statistics

from docs.generate.text import cell, table

_LOOPBACK = "127.0.0.1"
_NUMBERS = Statistics(*[0] * len(Statistics.__dataclass_fields__))
_MODEL = ModelDescription("", "", "", "", "", "", 0, 0, 0, 0, 0, 0, 0, 0, 0)


def page() -> str:
    """The page, in Markdown."""
    # When a counter began is the library's to say.
    ours = [one for one in _answered() if one.name.startswith("sonde_") and not one.name.endswith("_created")]
    return f"""# Metrics

This page is generated from the answer of a server on its `--metrics-port`. The answer also contains the metrics of the
process and of Python (`process_...`, `python_info`). [examples/grafana.json](../../examples/grafana.json) is a
dashboard.

{table(["Metric", "Kind", "Labels", "Meaning"], sorted(map(_row, ours)))}

`caller` is the name of a token or of a client's certificate. All callers without a name share an empty label, because
the number of hosts is unlimited.
"""


def _answered() -> Iterable[Metric]:
    metrics = Metrics()
    metrics.watch(_MODEL, "", lambda: _NUMBERS)
    call = Call("/sonde.v1.InspectionService/Trace", {}, runs=1)
    metrics.began(call)
    metrics.ended(call, grpc.StatusCode.OK, 0.0)
    metrics.batch(1)
    metrics.serve(_LOOPBACK, 0)
    try:
        # A proxy of the builder's has no business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{_LOOPBACK}:{metrics.port}/metrics", timeout=10) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))
    finally:
        metrics.stop()


def _row(metric: Metric) -> tuple[str, str, str, str]:
    suffix = "_total" if metric.type == "counter" else ""
    labels = sorted({name for sample in metric.samples for name in sample.labels} - {"le"})
    return (
        f"`{metric.name}{suffix}`",
        metric.type,
        ", ".join(f"`{name}`" for name in labels),
        cell(metric.documentation),
    )
