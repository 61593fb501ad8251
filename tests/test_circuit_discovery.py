"""Circuit discovery (ACDC), over the wire, against a plain loop that removes one edge after another."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import Host
from tests.support import wire
from tests.support.circuit_oracle import CircuitOracle, Edge, Node
from tests.support.discovery_oracle import Trial, discover
from tests.support.oracle import Target
from tests.test_circuits import circuits, nodes

IDS = [5, 130, 77, 301, 9]
OTHER = [8, 131, 70, 12, 9]
PAIRS = [(IDS, OTHER), ([5, 130, 20, 301, 90], [8, 131, 70, 12, 90]), ([7, 7, 77, 301, 9], [8, 131, 70, 200, 9])]
TARGET = Target(41)


def discovery(
    threshold: float, ids: Sequence[int] = IDS, other: Sequence[int] = OTHER, **fields: Any
) -> pb.TraceRequest:
    method = pb.CircuitDiscovery(source=wire.prompt(other), threshold=threshold, **fields)
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(TARGET)], circuit_discovery=method)


def trials(messages: Iterable[pb.TraceResponse]) -> list[Trial]:
    found: list[Trial] = []
    for message in messages:
        for part in message.discovered:
            assert part.offset == len(found)
            senders, receivers = _nodes(part.senders), _nodes(part.receivers)
            growths, kept = wire.array(part.growths).tolist(), wire.array(part.kept).tolist()
            found += map(Trial, zip(senders, receivers, strict=True), growths, map(bool, kept))
    return found


def _nodes(message: pb.Tensor) -> list[Node]:
    names = {number: name.removeprefix("COMPONENT_") for name, number in pb.Component.items()}
    return [Node(names[a], b, c) for a, b, c in wire.array(message).tolist()]


def losses(
    host: Host, edges: Sequence[Edge], pairs: Sequence[tuple[Any, Any]], metric: str
) -> Callable[[set[Edge]], float]:
    """The mean loss of a circuit, by a request for each prompt. That these are exact is what test_circuits.py shows."""

    def loss(kept: set[Edge]) -> float:
        some = [edge for edge in edges if edge in kept]
        sums = 0.0
        for ids, other in pairs:
            run = circuits(some, [len(some)], kl_divergence=True)
            run.readout.ClearField("targets")
            run.readout.targets.append(wire.target(TARGET))
            run.prompt.CopyFrom(wire.prompt(ids))
            run.sources[0].CopyFrom(wire.prompt(other))
            answer = host.intervene(run)
            if metric == "LOGIT":
                sums += float(answer.context.clean.logits[0]) - float(answer.columns["logits"][0, 0])
            else:
                sums += float(answer.columns["kl_divergences"][0])
        return sums / len(pairs)

    return loss


def same(found: Sequence[Trial], expected: Sequence[Trial]) -> None:
    assert [(edge, kept) for edge, _, kept in found] == [(edge, kept) for edge, _, kept in expected]
    np.testing.assert_allclose([one[1] for one in found], [one[1] for one in expected], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["", pytest.param("LOGIT", marks=pytest.mark.full)])
def test_it_decides_what_one_trial_after_another_decides(llama: Host, metric: str) -> None:
    oracle = CircuitOracle(llama.oracle)
    edges = oracle.edges()
    fields: dict[str, Any] = {"metric": pb.METRIC_LOGIT} if metric else {}
    found = trials(llama.stub.Trace(discovery(0.05, **fields), timeout=60))
    same(found, discover(oracle, edges, 0.05, losses(llama, edges, PAIRS[:1], metric)))
    assert 0 < sum(kept for _, _, kept in found) < len(found) < len(edges)


def test_it_begins_with_the_edges_that_it_is_given(gpt2: Host) -> None:
    oracle = CircuitOracle(gpt2.oracle)
    some = [edge for number, edge in enumerate(oracle.edges()) if number % 3]
    ends = {"senders": nodes([one for one, _ in some]), "receivers": nodes([one for _, one in some])}
    found = trials(gpt2.stub.Trace(discovery(0.02, **ends), timeout=60))
    same(found, discover(oracle, some, 0.02, losses(gpt2, some, PAIRS[:1], "")))


def test_cases_have_one_circuit_together_or_each_its_own(gpt2: Host) -> None:
    oracle = CircuitOracle(gpt2.oracle)
    edges = oracle.edges()
    cases = [pb.Case(prompt=wire.prompt(ids), sources=[wire.prompt(other)]) for ids, other in PAIRS]
    method = pb.CircuitDiscovery(threshold=0.05)
    request = pb.TraceRequest(cases=cases, targets=[wire.target(TARGET)], circuit_discovery=method)
    apart = list(gpt2.stub.Trace(request, timeout=60))
    for number, (ids, other) in enumerate(PAIRS):
        own = trials(message for message in apart if message.case_index == number)
        same(own, trials(gpt2.stub.Trace(discovery(0.05, ids, other), timeout=60)))
    request.reduction.SetInParent()
    together = list(gpt2.stub.Trace(request, timeout=60))
    same(trials(together), discover(oracle, edges, 0.05, losses(gpt2, edges, PAIRS, "")))
    assert {message.reduction.count for message in together if message.discovered} == {len(PAIRS)}


def test_the_circuit_has_the_loss_that_is_told_and_thresholds_bound_it(gpt2: Host) -> None:
    """With a threshold of 0 no edge that hurts is removed; with a large one all are, and the source is left."""
    messages = list(gpt2.stub.Trace(discovery(0.02), timeout=60))
    found = trials(messages)
    kept = [edge for edge, _, stays in found if stays]
    told = [part.loss for message in messages for part in message.discovered][-1]
    run = circuits(kept, [len(kept)], kl_divergence=True)
    run.prompt.CopyFrom(wire.prompt(IDS))
    run.sources[0].CopyFrom(wire.prompt(OTHER))
    np.testing.assert_allclose(gpt2.intervene(run).columns["kl_divergences"][0], told, rtol=1e-4, atol=1e-5)
    assert not any(stays for _, _, stays in trials(gpt2.stub.Trace(discovery(1e6), timeout=60)))
    progress = [message.progress for message in messages if message.HasField("progress")]
    assert progress[-1].done == progress[-1].total == len(CircuitOracle(gpt2.oracle).edges())
    assert messages[0].context.cost.runs == progress[-1].total


def test_a_caller_who_goes_away_stops_it(gpt2: Host) -> None:
    call = gpt2.stub.Trace(discovery(0.0001), timeout=60)
    next(iter(call))
    call.cancel()
    done = threading.Event()
    gpt2.stub.Trace(discovery(1e6), timeout=60).add_callback(done.set)
    assert done.wait(60)
    assert not gpt2.server.model.training


def test_faulty_requests_are_refused_by_their_field(gpt2: Host) -> None:
    refused = {
        "circuit_discovery.threshold": discovery(-1.0),
        "circuit_discovery.source": discovery(0.1, other=OTHER[:-1]),
        "circuit_discovery.receivers": discovery(0.1, senders=nodes([Node("TOKEN_EMBEDDING", 0, 0)])),
    }
    for field, request in refused.items():
        violations = wire.refusal(gpt2.stub.Trace(request)).violations
        assert any(name.startswith(field) for name in violations), violations
