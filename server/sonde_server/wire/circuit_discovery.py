"""Circuit discovery: where it begins and when an edge stays, and the edges that were tried."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.circuit_discovery import CircuitDiscovery, DiscoveredEdges
from ..questions.circuits import Edges
from ..questions.graph import Graph
from ..questions.prompts import Metric, Prompt
from .circuits import read_ends
from .fields import Reader
from .parts import row_bytes, rows, spans
from .prompts import read_alike, read_metric
from .tensors import encode_floats, encode_integers


def read_circuit_discovery(
    message: pb.CircuitDiscovery,
    path: str,
    prompt: Prompt | None,
    sources: Sequence[pb.Prompt] | None,
    reader: Reader,
) -> CircuitDiscovery | None:
    """The question; None where its source or its edges are faulty. `sources`: those of a case, maybe the source."""
    source = read_alike(message.source, f"{path}.source", prompt, sources, reader)
    if not math.isfinite(message.threshold) or message.threshold < 0:
        reader.problems.add(f"{path}.threshold", f"expected a finite number of 0 or more, got {message.threshold}")
    metric = read_metric(message.metric, Metric.LOGIT, f"{path}.metric", reader) if message.metric else None
    edges = None
    if message.HasField("senders") or message.HasField("receivers"):
        edges = reader.once((path, "edges"), lambda: _read_edges(message, path, reader))
        if edges is None:
            return None
    return None if source is None else CircuitDiscovery(source, message.threshold, metric, edges)


def _read_edges(message: pb.CircuitDiscovery, path: str, reader: Reader) -> Edges | None:
    ends = read_ends(message, path, reader)
    if ends is None or ends[1] is None:
        return None
    edges = np.zeros_like(Graph(reader.model).edges())
    edges[ends[1], ends[0]] = True
    return edges


def encode_discovered(part: DiscoveredEdges) -> Iterator[pb.DiscoveredEdges]:
    """As many edges at a time as fit into a message."""
    count = len(part.growths)
    for start, stop in spans(count, row_bytes(part, count)) if count else [(0, 0)]:
        some = rows(part, start, stop)
        yield pb.DiscoveredEdges(
            offset=part.offset + start,
            senders=encode_integers(some.senders),
            receivers=encode_integers(some.receivers),
            growths=encode_floats(some.growths),
            kept=encode_integers(some.kept),
            loss=part.loss,
        )
