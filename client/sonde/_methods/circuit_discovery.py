"""The method CircuitDiscovery: the edges that are left when those which make no difference are removed.

ACDC: Conmy et al. 2023 (arXiv 2304.14997).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sonde._answers.edges import Edge, Edges, Node
from sonde._answers.results import TraceResult
from sonde._arrays import Axes, Booleans, Floats
from sonde._ask.circuits import Listed, ends_of
from sonde._ask.given import number, refusal
from sonde._ask.names import METRICS, MetricName, check_name
from sonde._ask.prompts import PromptLike
from sonde._methods.method import Assembly, Kind, Method, register
from sonde._show import plotting, terminal
from sonde._show.display import note, sortable_table
from sonde._show.graphs import Dot, Line, graph
from sonde._wire.context import Context
from sonde._wire.encoding import encode_prompt
from sonde._wire.parts import missing
from sonde._wire.plans import int_tensor
from sonde._wire.tensors import floats, integers
from sonde.errors import InvalidRequest, ProtocolError
from sonde.v1 import inspection_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_MOST_LISTED = 50
_MOST_DRAWN = 120
_READING = {"query": "queries", "key": "keys", "value": "values", "mlp_out": "MLPs", "logits": "logits"}


@dataclass(frozen=True, eq=False, repr=False)
class CircuitDiscoveryResult(TraceResult):
    """A circuit: the edges without which the prediction changes."""

    tried: Edges
    """The edges that were tried, in the order of their trials; the estimates are how much the loss grew."""
    kept: Booleans
    """[edge]: which of them were kept."""
    loss: float
    """How far the circuit is from the unchanged run, in nats or in units of the metric."""

    @property
    def edges(self) -> Edges:
        """The circuit, the edges first whose removal raises the loss the most."""
        mine = Edges(self.tried.senders[self.kept], self.tried.receivers[self.kept], self.tried.estimates[self.kept])
        return mine.ordered()

    def labelled(self) -> tuple[Axes, npt.NDArray[np.generic]]:
        """The edges that were tried, and how much the loss grew without each."""
        return {"edge": tuple(map(str, self.tried))}, self.tried.estimates[:, 0]

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per edge that was tried, in the order of the trials (needs pandas)."""
        table = self.tried.to_dataframe().rename(columns={"estimate": "growth"})
        table["kept"] = self.kept
        return table

    def plot(self, path: "str | Path | None" = None) -> "Figure":
        """Draw the circuit, from the bottom up, and save the figure if a path is given (needs matplotlib).

        Lines are as wide as the loss grows without them; of a large circuit, only the largest edges are drawn.
        """
        edges = self.edges
        some = edges[:_MOST_DRAWN]
        title = f"Circuit of {len(edges):,} edges for {self._word()}, loss {self.loss:.3g}"
        if len(some) < len(edges):
            title += f"\n(its {len(some)} largest edges)"
        return plotting.save(draw_circuit(self._titled(title), some), path)

    def _pieces(self) -> list[str]:
        rows = [_row(edge) for edge in self.edges[:_MOST_LISTED]]
        said = f"{len(self.edges):,} of {len(self.tried):,} edges that were tried were kept; loss {self.loss:.4g}"
        return [note(said), sortable_table("the circuit", ["sender", "receiver", "growth of the loss"], rows)]

    def _paragraphs(self, count: int) -> list[str]:
        rows = [_row(edge) for edge in self.edges[:count]]
        table = terminal.table(["sender", "receiver", "growth of the loss"], rows)
        return [f"{len(self.edges):,} of {len(self.tried):,} tried edges kept, loss {self.loss:.4g}\n{table}"]

    def _detail(self) -> str:
        return f", {len(self.edges):,} edges, loss {self.loss:.4g}"


def _row(edge: Edge) -> list[object]:
    return [str(edge.sender), str(edge.receiver), float(edge.estimates[0])]


def draw_circuit(title: str, edges: Sequence[Edge]) -> "Figure":
    """Draw edges between what they lead from and to: heads and MLPs, the embedding below and the logits above them."""
    found: dict[tuple[float, str], int] = {}
    for edge in edges:
        for node in (edge.sender, edge.receiver):
            found.setdefault(_place(node), 0)
    rows: dict[float, list[str]] = {}
    for height, name in sorted(found):
        rows.setdefault(height, []).append(name)
    levels = {height: number for number, height in enumerate(sorted(rows))}
    # MLPs stand beside the heads, so that lines to and from them do not run through heads.
    widest = max((len(names) for names in rows.values()), default=1) / 2
    weights: dict[str, float] = {}
    for edge in edges:
        for node in (edge.sender, edge.receiver):
            name = _place(node)[1]
            weights[name] = weights.get(name, 0.0) + abs(float(edge.estimates[0]))
    dots: list[Dot] = []
    for height, names in rows.items():
        # Those that matter the most are nearest to the MLPs.
        names.sort(key=weights.__getitem__)
        beside = widest + 0.6 if names[0].startswith("MLP") else 0.0
        for across, name in enumerate(names):
            found[height, name] = len(dots)
            dots.append(Dot(beside or across - (len(names) - 1) / 2, levels[height], name))
    most = max((abs(float(edge.estimates[0])) for edge in edges), default=1.0) or 1.0
    kinds = [kind for kind in _READING if any(edge.receiver.component == kind for edge in edges)]
    lines = [
        Line(
            found[_place(edge.sender)],
            found[_place(edge.receiver)],
            min(1.0, abs(float(edge.estimates[0])) / most),
            kinds.index(str(edge.receiver.component)),
        )
        for edge in edges
    ]
    if not dots:
        dots = [Dot(0, 0, "no edges")]
    return graph(title, dots, lines, legend=[f"read by {_READING[kind]}" for kind in kinds], straight=False)


def _place(node: Node) -> tuple[float, str]:
    """How high a node is drawn, and its text. What heads read and write is one node."""
    if node.component == "token_embedding":
        return -1.0, "embedding"
    if node.component == "logits":
        return 1e9, "logits"
    assert node.layer is not None
    if node.component == "mlp_out":
        return node.layer + 0.5, f"MLP {node.layer}"
    name = f"head {node.layer}.{node.head}"
    return float(node.layer), name if node.component in ("head_out", "query") else f"key head\n{node.layer}.{node.head}"


@dataclass(frozen=True, slots=True, eq=False)
class CircuitDiscovery(Method[CircuitDiscoveryResult]):
    """Find a circuit: remove edges one after another as long as the loss grows by less than a threshold.

    Greedy pruning from the logits down (ACDC, Conmy et al. 2023, arXiv 2304.14997). Along a removed edge the receiver
    reads the values of `source`. With `reduce="mean"` the cases of a dataset have one circuit, by their mean loss.

    Args:
        source: the prompt whose values removed edges carry, with the same number of tokens; None means each case's own
            source.
        threshold: an edge stays if the loss grows by this much without it, in nats or in units of the metric.
        metric: the loss is how far the first target's metric falls; the default is KL(unchanged || pruned).
        edges: the edges to begin with, such as the first ones by attribution patching; the default is all.

    Raises:
        InvalidRequest: if the metric is not known, the threshold not a number, or `edges` no edges.
    """

    source: PromptLike | None = None
    threshold: float = 0.01
    metric: MetricName | None = None
    edges: Listed | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")
        if self.edges is not None and ends_of(self.edges)[1] is None:
            raise refusal("edges", "edges, got nodes", self.edges)


def _write(method: CircuitDiscovery, request: pb.TraceRequest) -> None:
    message = request.circuit_discovery
    if method.source is not None:
        message.source.CopyFrom(encode_prompt(method.source))
    elif not request.cases:
        raise InvalidRequest.at("source", "expected the prompt whose values removed edges carry, got none")
    message.source.SetInParent()
    message.threshold = number(method.threshold, "threshold")
    if method.metric is not None:
        message.metric = METRICS[method.metric]
    if method.edges is not None:
        senders, receivers = ends_of(method.edges)
        assert receivers is not None
        message.senders.CopyFrom(int_tensor(senders))
        message.receivers.CopyFrom(int_tensor(receivers))


class _Assembly(Assembly[CircuitDiscoveryResult]):
    def __init__(self, _: CircuitDiscovery, __: pb.TraceRequest) -> None:
        self._parts: list[pb.DiscoveredEdges] = []

    def take(self, context: Context, message: pb.TraceResponse) -> None:  # noqa: ARG002 - edges need no positions
        self._parts.extend(message.discovered)

    @property
    def ready(self) -> bool:
        return bool(self._parts)

    def check(self, context: Context) -> None:  # noqa: ARG002
        if not self._parts:
            raise missing("the edges did not arrive")

    def build(self, context: Context) -> CircuitDiscoveryResult:
        parts = sorted(self._parts, key=lambda part: part.offset)
        ends = [[integers(getattr(part, name)) for part in parts] for name in ("senders", "receivers", "kept")]
        growths = [floats(part.growths) for part in parts]
        following = 0
        for part, values, *rows in zip(parts, growths, *ends, strict=True):
            if part.offset != following or any(len(one) != len(values) for one in rows):
                raise ProtocolError(f"the answer has edges that do not follow each other, at offset {part.offset}")
            following += len(values)
        if not parts:
            ends, growths = [[np.empty((0, 3), np.int64)]] * 2 + [[np.empty(0, np.int64)]], [np.empty(0, np.float32)]
        tried: Floats = np.concatenate(growths)[:, None]
        edges = Edges(np.concatenate(ends[0]), np.concatenate(ends[1]), tried)
        loss = parts[-1].loss if parts else 0.0
        return CircuitDiscoveryResult(
            **context.common(), tried=edges, kept=np.concatenate(ends[2]).astype(np.bool_), loss=loss
        )


register(CircuitDiscovery, Kind(_write, _Assembly, (CircuitDiscoveryResult, Edges)))
