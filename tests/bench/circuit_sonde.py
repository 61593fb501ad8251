"""Sonde over a loopback socket, asked about circuits through the Python client, a dataset in one request."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import sonde

from tests.bench.case_workloads import Pair
from tests.bench.circuit_workloads import CircuitWorkload, Curve, Paths, Scrubbing
from tests.bench.workloads import Answer
from tests.support.oracle import Site
from tests.support.scrubbing_oracle import Node


class CircuitSocket:
    """The Python client, gRPC, a server process."""

    name = "Sonde, socket"
    omitted: Mapping[str, str] = {}

    def __init__(self, address: str) -> None:
        self.address = address
        self._client = sonde.Client(address)

    def close(self) -> None:
        self._client.close()

    def paths(self, workload: Paths) -> Answer:
        """A sweep over heads, whose changes the logits alone see."""
        result = self._client.intervene(*_paths(workload), reduce="mean", top_k=0).mean
        return np.asarray(result.logits, np.float64).reshape(len(workload.layers), workload.heads)

    def curve(self, workload: Curve) -> Answer:
        """Runs of circuits."""
        result = self._client.intervene(*_curve(workload), reduce="mean", top_k=0).mean
        return np.asarray(result.logits, np.float64).reshape(-1)

    def scrubbing(self, workload: Scrubbing) -> Answer:
        """Runs of a hypothesis, whose draws are given."""
        results = self._client.intervene(*_scrubbing(workload), top_k=0)
        return np.stack([np.asarray(results[one].logits, np.float64)[:, 0] for one in range(len(workload))])

    def cost(self, workload: CircuitWorkload) -> tuple[int, int]:
        """Token-layers, and rows that are unembedded, as a dry run announces them."""
        match workload:
            case Paths():
                asked = _paths(workload)
            case Curve():
                asked = _curve(workload)
            case Scrubbing():
                asked = _scrubbing(workload)
        cost = self._client.intervene(*asked, dry_run=True).cost
        return cost.token_layers, cost.runs + len(workload.cases)


def _cases(pairs: tuple[Pair, ...]) -> sonde.Cases:
    return sonde.Cases(
        sonde.Case(one.tokens, sources=[one.source] if one.source else (), targets=[(one.target, one.contrast)])
        for one in pairs
    )


def _paths(workload: Paths) -> tuple[sonde.Cases, Any]:
    edit = sonde.along(sonde.patch(sonde.head(), 0), sonde.site("logits"))
    return _cases(workload.cases), sonde.sweep(edit, layers=workload.layers, together="position")


def _curve(workload: Curve) -> tuple[sonde.Cases, Any]:
    return _cases(workload.cases), sonde.circuits(workload.edges, sizes=workload.sizes, patch=0)


def _scrubbing(workload: Scrubbing) -> tuple[sonde.Cases, Any]:
    plan = sonde.CausalScrubbing(
        _tree(workload.nodes, 0), draws=workload.draws.astype(np.int32), references=workload.references
    )
    return _cases(workload.cases), plan


def _tree(nodes: tuple[Node, ...], number: int) -> sonde.Claim:
    """A node and all below it; nodes come in the order in which the tree is numbered."""
    node = nodes[number]
    inputs = [_tree(nodes, child) for child, one in enumerate(nodes) if one.parent == number]
    labels = {"labels": node.labels or None, "other_labels": node.other_labels or None}
    if node.site is None:
        return sonde.prediction(**labels, inputs=inputs)
    return sonde.claim(_site(node.site), **labels, direct=node.direct, inputs=inputs)


def _site(site: Site) -> sonde.Site:
    places: dict[str, Any] = {"layers": site.layers, "units": site.units or None, "positions": site.positions or None}
    return sonde.site(site.component.lower(), **places)
