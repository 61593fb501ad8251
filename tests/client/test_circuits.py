"""Paths, circuits, circuit discovery and causal scrubbing from Python, against a real server."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import sonde
from sonde import questions
from sonde._methods.interventions import intervene_request
from sonde._wire.tensors import from_tensor
from sonde.cli import main
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import (
    InspectionServiceServicer,
    InspectionServiceStub,
    add_InspectionServiceServicer_to_server,
)
from sonde_server.config import Settings
from sonde_server.serving.server import Server

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
ANSWER = [(" Mary", " John")]
HEAD, LOGITS = sonde.head(layer=0, unit=1), sonde.site("logits")
NAMES = [("Mary", "John"), ("Alice", "Carl")]
SENTENCES = [(a, b, giver) for one in NAMES for a, b in itertools.permutations(one) for giver in (a, b)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Server(Settings(port=0, device="cpu")) as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[sonde.Client]:
    with sonde.Client(address) as connected:
        yield connected


@pytest.fixture(scope="module")
def edges(client: sonde.Client) -> sonde.Edges:
    return client.trace(PROMPT, targets=ANSWER, method=sonde.AttributionPatching(OTHER, edges="all")).edges


def text(a: str, b: str, giver: str) -> str:
    return f"When {a} and {b} went to the store, {giver} gave a drink to"


def pairs() -> sonde.Cases:
    return sonde.Cases(
        sonde.Case(text(a, b, b), sources=[text(a, b, a)], targets=[(f" {a}", f" {b}")]) for a, b in NAMES
    )


def examples() -> sonde.Cases:
    return sonde.Cases(
        sonde.Case(text(a, b, giver), targets=[(f" {b if giver == a else a}", f" {giver}")])
        for a, b, giver in SENTENCES
    )


def encoded(plan: Any, prompt: Any = PROMPT) -> pb.InterveneRequest:
    return intervene_request(
        prompt, plan, targets=None, sources=(), position=None, top_k=0, kl_divergence=False, activations=(),
        generation=None, dry_run=False,
    )  # fmt: skip


def test_a_path_is_what_was_asked() -> None:
    edit = sonde.along(
        sonde.scale(sonde.head(layer=0, unit=1), 0.0),
        [sonde.site("query", layers=3, units=5, positions=-1), sonde.site("logits")],
        through=sonde.site("mlp_out"),
    )
    (run,) = encoded([edit]).list.interventions
    receivers = [(one.component, list(one.layers), list(one.units)) for one in run.edits[0].path.receivers]
    assert receivers == [(pb.COMPONENT_QUERY, [3], [5]), (pb.COMPONENT_LOGITS, [], [])]
    assert [one.component for one in run.edits[0].path.through] == [pb.COMPONENT_MLP_OUT]
    assert encoded(sonde.sweep(edit, units=None)).sweep.edit.path == run.edits[0].path
    assert not encoded([sonde.scale(sonde.head(layer=0), 0.0)]).list.interventions[0].edits[0].HasField("path")


def test_a_hypothesis_is_flat_and_its_labels_are_numbers() -> None:
    leaf = sonde.claim(sonde.head(layer=0, unit=1), labels=["b", "a", "b"], direct=True)
    inner = sonde.claim(sonde.site("query", layers=2), other_labels=[(1, 2), (1, 2), None], inputs=[leaf])
    tree = sonde.prediction(labels=[True, False, True], inputs=[inner, sonde.claim(sonde.site("mlp_out", layers=3))])
    plan = encoded(sonde.CausalScrubbing(tree, samples=5, seed=9, references=[2, 0])).causal_scrubbing
    assert [node.parent for node in plan.nodes[1:]] == [0, 1, 0]
    assert not plan.nodes[0].HasField("parent")
    assert [list(node.labels) for node in plan.nodes] == [[0, 1, 0], [], [0, 1, 0], []]
    assert list(plan.nodes[1].other_labels) == [0, 0, 1]
    assert [node.direct for node in plan.nodes] == [False, False, True, False]
    assert (plan.samples, plan.seed, list(plan.references)) == (5, 9, [2, 0])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: sonde.along(sonde.head(layer=0), sonde.site("logits")), "along"),  # type: ignore[arg-type]
        (lambda: sonde.along(sonde.scale(sonde.head(layer=0), 0), "logits"), "receivers"),  # type: ignore[arg-type]
        (lambda: sonde.circuits([(1, 2)]), "edges[0]"),  # type: ignore[list-item]
        (lambda: sonde.circuits(PROMPT), "edges"),  # type: ignore[arg-type]
        (lambda: sonde.circuits([(HEAD, LOGITS), HEAD]), "edges"),
        (lambda: sonde.circuits([sonde.head(layer=0, unit=[1, 2])]), "edges[0]"),
        (lambda: sonde.circuits([sonde.head(layer=0, unit=1, position=-1)]), "edges[0]"),
        (lambda: sonde.CircuitDiscovery(OTHER, edges=[HEAD]), "edges"),
        (lambda: sonde.prediction(inputs=[sonde.scale(HEAD, 0)]), "inputs"),  # type: ignore[list-item]
        (lambda: sonde.claim(HEAD, labels=[1, [2]]), "labels[1]"),  # type: ignore[list-item]
        (lambda: encoded(sonde.CausalScrubbing(sonde.prediction(), draws=np.zeros((1, 1, 1, 2)))), "draws"),  # type: ignore[arg-type]
        (lambda: questions.find_circuit(None, pairs(), method="eapig"), "method"),  # type: ignore[arg-type]
        (lambda: questions.find_circuit(None, pairs(), edges=9), "edges"),  # type: ignore[arg-type]
        (lambda: sonde.claim("head"), "site"),  # type: ignore[arg-type]
        (lambda: sonde.prediction(inputs=[sonde.prediction()]), "inputs"),
        (lambda: encoded(sonde.CausalScrubbing(sonde.claim(sonde.head(layer=0)))), "hypothesis"),
        (lambda: sonde.CircuitDiscovery(OTHER, metric="loss"), "metric"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_named(wrong: Any, named: str) -> None:
    with pytest.raises(sonde.InvalidRequest) as caught:
        wrong()
    assert caught.value.violations[0].field.startswith(named)


def test_a_curve_begins_at_0_and_ends_at_1(client: sonde.Client, edges: sonde.Edges, tmp_path: Path) -> None:
    result = client.intervene(PROMPT, sonde.circuits(edges, patch=OTHER), targets=ANSWER)
    assert result.axes["size"] == (0, 1, 3, 10, 30, 100, 300, 1000, 3000, len(edges))
    curve = result.faithfulness()
    np.testing.assert_allclose(curve[[0, -1]], [0, 1], atol=1e-5)
    none = client.trace(OTHER, targets=ANSWER).prediction.logits[0]
    whole = result.clean.logits[0]
    np.testing.assert_allclose(curve, (result.logits[:, 0] - none) / (whole - none), atol=1e-4)
    assert result.circuit_performance_ratio() + result.circuit_model_distance() >= 1 - 1e-6
    assert result[3].logits[0] == result.logits[3, 0]
    assert result.labels[2] == "3 kept"
    result.plot(tmp_path / "curve.png")
    result.save(tmp_path / "curve.npz")
    np.testing.assert_array_equal(sonde.load(tmp_path / "curve.npz").faithfulness(), curve)
    with pytest.raises(ValueError, match="a size of 0"):
        client.intervene(PROMPT, sonde.circuits(edges, sizes=[5], patch=OTHER), targets=ANSWER).faithfulness()


def test_edges_can_be_ordered_and_nodes_ranked(client: sonde.Client, edges: sonde.Edges) -> None:
    signed = edges.ordered(by="signed").estimates[:, 0]
    assert np.all(np.diff(signed) <= 0)
    np.testing.assert_array_equal(edges.ordered().estimates, edges.estimates)
    method = sonde.AttributionPatching(OTHER, components=["head_out", "mlp_out"])
    found = client.trace(PROMPT, targets=ANSWER, method=method)
    nodes = found.nodes()
    assert len(nodes) == client.model.layers * (client.model.heads + 1)
    summed = found.estimates["mlp_out"][0, :, 0].sum()
    number = [str(node) for node in nodes].index("mlp out 0")
    np.testing.assert_allclose(nodes.estimates[number], summed, rtol=1e-5)
    result = client.intervene(PROMPT, sonde.circuits(nodes, sizes=[0, 5], patch=OTHER), targets=ANSWER)
    assert result.faithfulness()[0] == 0


def test_a_discovered_circuit_is_what_it_says(client: sonde.Client, tmp_path: Path) -> None:
    found = client.trace(PROMPT, targets=ANSWER, method=sonde.CircuitDiscovery(OTHER, threshold=0.2))
    assert len(found.edges) == found.kept.sum() < len(found.tried)
    assert np.all(found.edges.estimates >= 0.2)
    run = sonde.circuits(found.edges, sizes=[len(found.edges)], patch=OTHER)
    result = client.intervene(PROMPT, run, targets=ANSWER, kl_divergence=True)
    assert result.kl_divergences is not None
    np.testing.assert_allclose(result.kl_divergences[0], found.loss, rtol=1e-4)
    found.plot(tmp_path / "circuit.png")
    found.save(tmp_path / "circuit.npz")
    again = sonde.load(tmp_path / "circuit.npz")
    np.testing.assert_array_equal(again.edges.senders, found.edges.senders)
    assert list(found.to_dataframe().columns[-2:]) == ["growth", "kept"]
    assert "7 of 118 tried edges kept" in found.to_text()


def test_questions_over_pairs(client: sonde.Client, tmp_path: Path) -> None:
    found = questions.path_patching(client, pairs(), sonde.site("logits"), through=sonde.site("mlp_out"))
    assert found.effects.shape == (client.model.layers, client.model.heads)
    assert found.strongest(1)[0][:2] == (0, 1)
    single = []
    for case in pairs():
        edit = sonde.along(sonde.patch(sonde.head(layer=0, unit=1), 0), sonde.site("logits"), sonde.site("mlp_out"))
        (one,) = client.intervene(sonde.Cases([case]), [edit])
        single.append(one.logits[0, 0] - one.clean.logits[0])
    np.testing.assert_allclose(found.effects[0, 1], np.mean(single), rtol=1e-4)
    below = questions.path_patching(client, pairs(), sonde.site("query", layers=2, units=1))
    assert below.effects.shape[0] == 2
    circuit = questions.find_circuit(client, pairs(), method="acdc", edges=40, threshold=0.5)
    assert 0 < len(circuit.edges) <= 40
    assert circuit.faithfulness[0] == 0
    for number, one in enumerate((found, circuit)):
        one.plot(tmp_path / f"{number}.png")
        one.save(tmp_path / f"{number}.npz")
        assert type(sonde.load(tmp_path / f"{number}.npz")) is type(one)


def test_scrubbing_recovers_what_a_right_hypothesis_keeps(client: sonde.Client, tmp_path: Path) -> None:
    givers = [giver for _, _, giver in SENTENCES]
    names = [frozenset((a, b)) for a, b, _ in SENTENCES]
    heads = sonde.head(layer=0, unit=[1, 4, 6], position=-1)
    right = sonde.prediction(other_labels=names, inputs=[sonde.claim(heads, labels=givers)])
    result = questions.causal_scrubbing(client, examples(), right, samples=4, seed=3)
    wrong = questions.causal_scrubbing(client, examples(), sonde.prediction(inputs=[sonde.claim(heads)]), samples=4)
    assert result.recovered > 0.8
    assert wrong.recovered < 0.5
    assert result.interval[0] < result.recovered < result.interval[1]
    expected = (result.means - result.random).sum() / (result.clean - result.random).sum()
    np.testing.assert_allclose(result.recovered, expected)
    again = questions.causal_scrubbing(client, examples(), right, draws=result.draws)
    np.testing.assert_allclose(again.scrubbed, result.scrubbed, atol=1e-4)
    assert f"({len(SENTENCES)} references x 4 draws)" in str(result)
    assert result.nodes[0].other_classes == len(NAMES)
    result.plot(tmp_path / "tree.png")
    result.save(tmp_path / "tree.npz")
    np.testing.assert_array_equal(sonde.load(tmp_path / "tree.npz").scrubbed, result.scrubbed)


def test_some_references_are_answered_in_their_order(client: sonde.Client) -> None:
    tree = sonde.prediction(inputs=[sonde.claim(sonde.head(layer=0, unit=1))])
    some = client.intervene(examples(), sonde.CausalScrubbing(tree, samples=2, references=[5, 1]), top_k=0)
    whole = client.intervene(examples(), sonde.CausalScrubbing(tree, samples=2), top_k=0)
    assert len(some) == 2
    for one, number in zip(some, (5, 1), strict=True):
        np.testing.assert_allclose(one.logits, whole[number].logits, atol=1e-4)
        np.testing.assert_array_equal(one.draws, whole[number].draws)
    assert whole[0].examples is not None
    assert whole[0].examples.logits.shape == (len(SENTENCES), 1)


def test_the_command_patches_paths_and_discovers_circuits(address: str, capsys: Any) -> None:
    at = ("--address", address)
    path = ("--sweep", "head", "--patch-from", OTHER, "--along", "logits", "--through", "mlps", "--layers", "0-1")
    assert main(["intervene", PROMPT, *path, "--positions", "-1", "--target", " Mary", *at]) == 0
    assert "16 runs" in capsys.readouterr().out
    assert main(["intervene", PROMPT, "--head", "0:1", "--along", "mlp_out:0", "--along", "query:2:1", *at]) == 0
    capsys.readouterr()
    assert main(["trace", PROMPT, "--discover-from", OTHER, "--threshold", "0.2", *at]) == 0
    assert "7 of 118 tried edges kept" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["intervene", PROMPT, "--head", "0:1", "--along", "neuron:3", *at])
    assert "expected one of query, key, value, mlp_out, logits" in capsys.readouterr().err


def test_tensors_of_edges_are_int32(edges: sonde.Edges) -> None:
    message = encoded(sonde.circuits(edges[:7], sizes=[3])).circuits
    np.testing.assert_array_equal(from_tensor(message.senders), edges.senders[:7])
    assert message.senders.data_type == pb.DATA_TYPE_INT32
    assert not message.HasField("patch")


def test_edges_and_nodes_can_be_listed(client: sonde.Client, edges: sonde.Edges) -> None:
    of_trace = encoded(sonde.circuits(edges[:9])).circuits
    assert encoded(sonde.circuits(list(edges[:9]))).circuits == of_trace
    assert encoded(sonde.circuits([(edge.sender, edge.receiver) for edge in edges[:9]])).circuits == of_trace
    pair = [(HEAD, LOGITS), (sonde.site("mlp_out", layers=2), sonde.site("query", layers=3, units=5))]
    written = encoded(sonde.circuits(pair)).circuits
    np.testing.assert_array_equal(
        from_tensor(written.senders), [[pb.COMPONENT_HEAD_OUT, 0, 1], [pb.COMPONENT_MLP_OUT, 2, 0]]
    )
    np.testing.assert_array_equal(
        from_tensor(written.receivers), [[pb.COMPONENT_LOGITS, 0, 0], [pb.COMPONENT_QUERY, 3, 5]]
    )
    nodes = [HEAD, sonde.site("mlp_out", layers=2)]
    assert not encoded(sonde.circuits(nodes)).circuits.HasField("receivers")
    assert client.intervene(PROMPT, sonde.circuits(nodes, sizes=[0, 2], patch=OTHER), targets=ANSWER).listed == 2


def test_areas_need_both_ends_and_a_curve_needs_a_difference(client: sonde.Client, edges: sonde.Edges) -> None:
    some = client.intervene(PROMPT, sonde.circuits(edges, sizes=[0, 10], patch=OTHER), targets=ANSWER)
    for area in (some.circuit_performance_ratio, some.circuit_model_distance):
        with pytest.raises(ValueError, match=f"expected the size {len(edges)}"):
            area()
    with pytest.raises(ValueError, match="expected the answer to"):
        client.intervene(PROMPT, [sonde.scale(HEAD, 0)], targets=ANSWER).circuit_performance_ratio()
    # Rounding alone tells these runs apart.
    alike = client.intervene(PROMPT, sonde.circuits(edges, sizes=[0, 5], patch=PROMPT), targets=ANSWER)
    with pytest.raises(ValueError, match="got the same"):
        alike.faithfulness()


def test_the_heads_of_an_mlps_own_block_are_patched_too(client: sonde.Client) -> None:
    mlp = sonde.site("mlp_out", layers=1)
    found = questions.path_patching(client, pairs(), (one for one in [mlp]))
    named = questions.path_patching(client, pairs(), mlp, layers=[0, 1])
    assert found.effects.shape == (2, client.model.heads)
    assert np.abs(found.effects[1]).max() > 1e-3
    np.testing.assert_array_equal(found.effects, named.effects)
    with pytest.raises(sonde.InvalidRequest, match="reads after a head"):
        questions.path_patching(client, pairs(), sonde.site("key", layers=0, units=1))


def test_a_hypothesis_can_be_deeper_than_calls() -> None:
    deep = sonde.claim(HEAD)
    for _ in range(3000):
        deep = sonde.claim(HEAD, inputs=[deep])
    assert [above for _, above in sonde.prediction(inputs=[deep]).flat()] == [None, *range(3001)]


def test_what_recovers_nothing_that_was_lost_is_shown(client: sonde.Client, tmp_path: Path) -> None:
    same = [sonde.Case(PROMPT, targets=ANSWER)] * 2
    result = questions.causal_scrubbing(client, same, sonde.prediction(), samples=2)
    with pytest.raises(ValueError, match="predictions differ"):
        _ = result.recovered
    assert "recovered undefined" in repr(result)
    result.plot(tmp_path / "tree.png")


class Cut(InspectionServiceServicer):
    """Hands requests on to a server; the first answer ends in the middle of its second case."""

    def __init__(self, address: str) -> None:
        self._server = InspectionServiceStub(grpc.insecure_channel(address))
        self.asked: list[pb.InterveneRequest] = []

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's
        return self._server.GetModel(request)

    def Intervene(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.asked.append(request)
        known: list[int] = []
        for message in self._server.Intervene(request):
            yield message
            if message.HasField("context") and message.case_index not in known:
                known.append(message.case_index)
            if len(self.asked) == 1 and len(known) == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server is gone")


@pytest.mark.parametrize("drawn", [False, True])
def test_references_that_are_lacking_are_asked_for_with_all_examples(address: str, client: Any, drawn: bool) -> None:
    tree = sonde.prediction(inputs=[sonde.claim(HEAD, labels=[giver for *_, giver in SENTENCES])])
    plan = sonde.CausalScrubbing(tree, samples=2, references=[5, 1, 4])
    whole = client.intervene(examples(), plan, top_k=0)
    if drawn:
        plan = sonde.CausalScrubbing(tree, draws=np.stack([one.draws for one in whole]), references=[5, 1, 4])
    cut, server = Cut(address), grpc.server(ThreadPoolExecutor(4))
    add_InspectionServiceServicer_to_server(cut, server)  # type: ignore[no-untyped-call, unused-ignore]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with sonde.Client(f"127.0.0.1:{port}") as other:
        result = other.intervene(examples(), plan, top_k=0)
    server.stop(None).wait()
    assert [list(one.causal_scrubbing.references) for one in cut.asked] == [[5, 1, 4], [1, 4]]
    assert all(len(one.cases) == len(SENTENCES) for one in cut.asked)
    for one, same in zip(result, whole, strict=True):
        np.testing.assert_array_equal(one.draws, same.draws)
        np.testing.assert_allclose(one.logits, same.logits, atol=1e-4)
