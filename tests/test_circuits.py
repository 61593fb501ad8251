"""Runs of circuits (InterveneRequest.circuits), over the wire, against what every receiver reads, written out.

C1 to C5 are the identities of circuits: what must hold in every model, whatever its weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import Host, Hosts
from tests.support import wire
from tests.support.circuit_oracle import CircuitOracle, Edge, Node
from tests.support.models import EVERY
from tests.support.oracle import Target
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
THIRD = [8, 131, 71, 12, 19, 26, 200]
LAST = len(IDS) - 1
TARGETS = [Target(41), Target(200)]
FEW = ["gpt2", "llama", "gpt_neox", "gemma2"]
FAMILIES = [pytest.param(name, marks=() if name in FEW else pytest.mark.full) for name in EVERY]


def nodes(some: Sequence[Node]) -> pb.Tensor:
    values = np.array([[wire.component(one.component), one.layer, one.head] for one in some], "<i4").reshape(-1, 3)
    return pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=values.shape, data=values.tobytes())


def circuits(
    edges: Sequence[Edge], sizes: Sequence[int], sources: Sequence[int] = (0,), **fields: Any
) -> pb.InterveneRequest:
    plan = pb.Circuits(
        senders=nodes([one for one, _ in edges]), receivers=nodes([one for _, one in edges]), sizes=sizes
    )
    if sources:
        plan.patch.sources.extend(sources)
    return request(plan, **fields)


def request(plan: pb.Circuits, **fields: Any) -> pb.InterveneRequest:
    readout = pb.Readout(targets=[wire.target(one) for one in TARGETS], **fields)
    others = [wire.prompt(one) for one in (OTHER, THIRD)]
    return pb.InterveneRequest(prompt=wire.prompt(IDS), sources=others, circuits=plan, readout=readout)


def of(values: Any) -> npt.NDArray[np.float32]:
    return np.array([values[LAST, one.token] for one in TARGETS], np.float32)


def shuffled(edges: Sequence[Edge], seed: int = 0) -> list[Edge]:
    order = np.random.RandomState(seed).permutation(len(edges))
    return [edges[i] for i in order]


@pytest.mark.parametrize("family", FAMILIES)
def test_c1_to_c3_circuits_are_what_their_receivers_read(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    oracle = CircuitOracle(host.oracle)
    edges = shuffled(oracle.edges())
    sizes = [0, len(edges), len(edges) // 3, len(edges) * 4 // 5]
    answer = host.intervene(circuits(edges, sizes))
    found = answer.columns["logits"]
    other = host.oracle.run(OTHER).values
    assert_close(found[1], answer.context.clean.logits)
    assert_close(found[0], of(host.oracle.run(OTHER).logits))
    for number, size in enumerate(sizes[2:], 2):
        assert_close(found[number], of(oracle.circuit(IDS, other, edges[size:])))


def test_zeros_and_means_of_several_sources(host: Host) -> None:
    oracle = CircuitOracle(host.oracle)
    edges = shuffled(oracle.edges(), 1)
    size = len(edges) * 2 // 3
    runs = [host.oracle.run(one).values for one in (OTHER, THIRD)]
    mean = {place: torch.stack([one[place] for one in runs]).mean(0) for place in runs[0]}
    zeros = {place: torch.zeros_like(value) for place, value in runs[0].items()}
    found = host.intervene(circuits(edges, [size], (0, 1))).columns["logits"]
    assert_close(found[0], of(oracle.circuit(IDS, mean, edges[size:])))
    found = host.intervene(circuits(edges, [size], ())).columns["logits"]
    assert_close(found[0], of(oracle.circuit(IDS, zeros, edges[size:])))


def test_c4_the_order_of_edges_makes_no_difference_and_runs_are_the_same_alone(host: Host) -> None:
    edges = shuffled(CircuitOracle(host.oracle).edges())
    half = len(edges) // 2
    turned = [*reversed(edges[:half]), *edges[half:]]
    together = host.intervene(circuits(edges, [half // 2, half, half + 5])).columns["logits"]
    alone = host.intervene(circuits(turned, [half])).columns["logits"]
    assert_close(together[1], alone[0])


def test_nodes_keep_all_their_edges(host: Host) -> None:
    oracle = CircuitOracle(host.oracle)
    senders = oracle.senders()
    kept = [senders[i] for i in (0, 2, 3, 5, 8, 9)]
    plan = pb.Circuits(senders=nodes(kept), sizes=[len(kept), 3])
    plan.patch.sources.append(0)
    found = host.intervene(request(plan)).columns["logits"]
    other = host.oracle.run(OTHER).values
    for number, count in enumerate((len(kept), 3)):
        missing = [edge for edge in oracle.edges() if edge[0] not in kept[:count]]
        assert_close(found[number], of(oracle.circuit(IDS, other, missing)))


def test_edges_that_nothing_comes_after_make_no_difference(host: Host) -> None:
    """C5: what a node reads does not matter once nothing reads the node."""
    oracle = CircuitOracle(host.oracle)
    dead = Node("HEAD_OUT", 1, 1)
    written = [edge for edge in oracle.edges() if edge[0] == dead]
    read = [edge for edge in oracle.edges() if edge[1] == Node("QUERY", 1, 1)]
    rest = [edge for edge in oracle.edges() if edge not in written and edge not in read]
    found = host.intervene(circuits([*rest, *read], [len(rest), len(rest) + len(read)])).columns["logits"]
    assert_close(found[0], found[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cost_is_what_is_computed(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    edges = CircuitOracle(host.oracle).edges()
    engine = host.server.scheduler.engine
    engine.cache.clear()
    before = engine.work.token_layers
    # In their order the last edges are those of the logits, and then those of the uppermost block.
    answer = host.intervene(circuits(edges, [len(edges) - 3, len(edges) - 40, 10, 0]))
    assert engine.work.token_layers - before == answer.context.cost.token_layers
    told = circuits(edges, [len(edges) - 3, len(edges) - 40, 10, 0])
    told.dry_run = True
    assert host.intervene(told).context.cost == answer.context.cost


def test_a_prefix_that_both_prompts_have_is_not_computed_again(llama: Host) -> None:
    edges = CircuitOracle(llama.oracle).edges()
    asked = circuits(edges, [0])
    asked.sources[0].CopyFrom(wire.prompt([*IDS[:5], 7, 8]))
    asked.dry_run = True
    cost = llama.intervene(asked).context.cost.token_layers
    asked.sources[0].CopyFrom(wire.prompt([7, 8, *IDS[2:]]))
    assert llama.intervene(asked).context.cost.token_layers > cost


def test_cases_and_their_mean(gpt2: Host) -> None:
    """Each case has its own source; the mean is that of the cases."""
    edges = CircuitOracle(gpt2.oracle).edges()
    prompts, others = (IDS, [*IDS[:6], 90], THIRD), (OTHER, [*OTHER[:6], 91], OTHER)
    sizes = [0, 60, 100]
    asked = circuits(shuffled(edges), sizes)
    del asked.sources[:]
    single = []
    for ids, other in zip(prompts, others, strict=True):
        asked.prompt.CopyFrom(wire.prompt(ids))
        del asked.sources[:]
        asked.sources.append(wire.prompt(other))
        single.append(gpt2.intervene(asked).columns["logits"])
    del asked.sources[:]
    asked.ClearField("prompt")
    asked.cases.extend(
        pb.Case(prompt=wire.prompt(ids), sources=[wire.prompt(other)])
        for ids, other in zip(prompts, others, strict=True)
    )
    found: dict[int, Any] = {}
    for message in gpt2.stub.Intervene(asked, timeout=60):
        if message.HasField("readings"):
            found.setdefault(message.case_index, []).append(wire.array(message.readings.logits))
    for number, expected in enumerate(single):
        assert_close(np.concatenate(found[number]), expected)
    asked.reduction.SetInParent()
    means = [
        wire.array(message.readings.logits)
        for message in gpt2.stub.Intervene(asked, timeout=60)
        if message.HasField("readings") and message.reduction.statistic == pb.STATISTIC_MEAN
    ]
    assert_close(np.concatenate(means), np.mean(single, axis=0))


EMBEDDING, HEAD = Node("TOKEN_EMBEDDING", 0, 0), Node("HEAD_OUT", 1, 0)
QUERY, TOP = Node("QUERY", 1, 0), Node("LOGITS", 0, 0)
REFUSED = {
    "a size": (circuits([(EMBEDDING, TOP)], [0, 2]), "circuits.sizes[1]", "expected 0 to 1 edges, got 2"),
    "no size": (circuits([(EMBEDDING, TOP)], []), "circuits.sizes", "expected at least one size"),
    "twice": (circuits([(EMBEDDING, TOP)] * 2, [0]), "circuits.senders", "expected each edge once, got edge 1"),
    "order": (circuits([(EMBEDDING, TOP), (HEAD, QUERY)], [0]), "circuits.senders", "edge 1: expected a sender that"),
    "sender": (circuits([(QUERY, TOP)], [0]), "circuits.senders", "edge 0: expected one of TOKEN_EMBEDDING"),
    "head": (circuits([(Node("HEAD_OUT", 1, 99), TOP)], [0]), "circuits.senders", "with a head from 0 to"),
    "source": (circuits([(EMBEDDING, TOP)], [0], (7,)), "circuits.patch.sources[0]", "expected a source from 0 to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_faulty_circuits_are_refused_by_their_field(gpt2: Host, name: str) -> None:
    asked, field, said = REFUSED[name]
    assert said in wire.refusal(gpt2.stub.Intervene(asked)).violations[field]


def test_a_source_that_is_the_prompt_changes_nothing(gpt2: Host) -> None:
    asked = circuits(CircuitOracle(gpt2.oracle).edges(), [0, 9])
    asked.sources[0].CopyFrom(wire.prompt(IDS))
    answer = gpt2.intervene(asked)
    assert_close(answer.columns["logits"], np.stack([answer.context.clean.logits] * 2))


def test_sources_of_another_length_are_refused(gpt2: Host) -> None:
    asked = circuits([(EMBEDDING, TOP)], [0])
    asked.sources[0].CopyFrom(wire.prompt(OTHER[:-1]))
    violations = wire.refusal(gpt2.stub.Intervene(asked)).violations
    assert "has 7 tokens, got 6 in source 0" in violations["circuits.patch.sources[0]"]
