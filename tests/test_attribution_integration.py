"""Where the gradients of attributions are taken, over the wire: against plain autograd, and what holds of any model."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, Host, Hosts
from tests.support import attribution_oracle as plain
from tests.support import oracle, wire
from tests.support.attribution_oracle import Question
from tests.support.oracle import Edit, Site
from tests.support.tolerance import assert_near
from tests.test_attribution import ALL_EDGES, IDS, OTHER, TARGETS, available, parallel, request

# The two prompts differ from the third token on.
LATER = [*IDS[:2], *OTHER[2:]]
ACTIVATIONS: dict[str, Any] = {"integration": pb.INTEGRATION_ACTIVATIONS, "integration_steps": 2}
ENDS: dict[str, Any] = {"integration": pb.INTEGRATION_ENDS}


@pytest.fixture(params=["gptj", "gemma2"], scope="module")
def other_host(request: pytest.FixtureRequest, hosts: Hosts) -> Host:
    """Of a model whose blocks are parallel, and of one with a norm after attention."""
    return hosts[request.param]


def assert_edges(host: Host, found: dict[tuple[plain.End, plain.End], npt.NDArray[Any]], expected: Any) -> None:
    assert set(found) == set(expected)
    order = list(found)
    assert_near(np.array([found[edge] for edge in order]), np.array([expected[edge] for edge in order]), host.family)
    sizes = np.abs([found[edge][0] for edge in order])
    assert (sizes[:-1] >= sizes[1:]).all(), "the largest come first"


def by_turns(host: Host, source: list[int], position: int = -1) -> None:
    asked = request([], source=source, edges=ALL_EDGES, metric="LOG_PROBABILITY", position=position, **ACTIVATIONS)
    question = Question(IDS, source, TARGETS, "LOG_PROBABILITY", position, steps=2)
    expected = plain.edges_by_turns(host.oracle, question, parallel=parallel(host))
    assert_edges(host, host.trace(asked).edges, expected)


@pytest.mark.parametrize(
    ("source", "position"),
    [pytest.param(OTHER, -1, marks=pytest.mark.full, id="all"), pytest.param(LATER, -2, id="later")],
)
def test_edges_by_the_activations_of_each_sender(host: Host, source: list[int], position: int) -> None:
    by_turns(host, source, position)


def test_edges_by_activations_in_other_blocks(other_host: Host) -> None:
    by_turns(other_host, LATER)


def at_ends(host: Host, source: list[int]) -> None:
    names = available(host)
    answer = host.trace(request(names, source=source, edges=ALL_EDGES, metric="PROBABILITY", **ENDS))
    question = Question(IDS, source, TARGETS, "PROBABILITY", ends=True)
    assert_edges(host, answer.edges, plain.edges(host.oracle, question, parallel=parallel(host)))
    for name in names:
        assert_near(answer.estimates[name], plain.estimates(host.oracle, question, name), name)


@pytest.mark.parametrize("source", [OTHER, LATER], ids=["all", "later"])
def test_edges_and_places_by_the_gradients_at_both_ends(host: Host, source: list[int]) -> None:
    at_ends(host, source)


def test_edges_at_both_ends_in_other_blocks(other_host: Host) -> None:
    at_ends(other_host, OTHER)


def test_edges_where_the_prompts_differ_later(host: Host) -> None:
    for steps in (1, 2):
        asked = request([], source=LATER, edges=ALL_EDGES, integration_steps=steps)
        question = Question(IDS, LATER, TARGETS, steps=steps)
        assert_edges(host, host.trace(asked).edges, plain.edges(host.oracle, question, parallel=parallel(host)))


def test_both_ends_are_the_mean_of_both_directions(host: Host) -> None:
    fields = {"edges": ALL_EDGES, "metric": "LOG_PROBABILITY"}
    names = ["HEAD_OUT", "MLP_OUT", "QUERY"]
    both = host.trace(request(names, **ENDS, **fields))
    forth = host.trace(request(names, **fields))
    back = host.trace(request(names, ids=OTHER, source=IDS, **fields))
    for name in names:
        assert_near(both.estimates[name], (forth.estimates[name] - back.estimates[name]) / 2, name)
    assert_edges(host, both.edges, {edge: (forth.edges[edge] - back.edges[edge]) / 2 for edge in forth.edges})


def sums(answer: wire.Answer) -> dict[tuple[str, int], npt.NDArray[Any]]:
    """By component and layer of the senders, the sum of all their edges."""
    found: dict[tuple[str, int], npt.NDArray[Any]] = {}
    for ((component, layer, _), _), values in answer.edges.items():
        found[component, layer] = found.get((component, layer), np.zeros(len(TARGETS))) + values
    return found


def test_by_activations_the_edges_of_a_turn_are_what_patching_it_does(host: Host) -> None:
    metric = "LOG_PROBABILITY"

    def number(edits: list[Edit]) -> npt.NDArray[Any]:
        logits = host.oracle.run(IDS, edits, [OTHER]).logits[-1]
        return np.array([float(plain.number(logits, one, metric)) for one in TARGETS])

    def gaps(**fields: Any) -> dict[tuple[str, int], float]:
        found: dict[tuple[str, int], float] = {}
        for (component, layer), total in sums(
            host.trace(request([], edges=ALL_EDGES, metric=metric, **fields))
        ).items():
            layers = () if component == "TOKEN_EMBEDDING" else (layer,)
            patched = number([Edit(Site(component, layers), oracle.Patch((0,)))]) - number([])
            found[component, layer] = float(np.abs(total - patched).max())
        return found

    plainly, fewer, more = gaps(), *(gaps(**{**ACTIVATIONS, "integration_steps": steps}) for steps in (8, 24))
    assert max(plainly.values()) > 0.1, "otherwise nothing is shown"
    # The midpoint rule's error falls with the square of the steps, here by 9, until float32 ends it.
    for turn, gap in more.items():
        assert gap < max(fewer[turn] / 6, 1e-4), (turn, fewer, more)


def test_the_edges_of_a_sender_add_up_to_its_own_estimate_at_both_ends(host: Host) -> None:
    names = ["RESIDUAL_PRE", "HEAD_OUT", "MLP_OUT"]
    answer = host.trace(request(names, source=LATER, edges=ALL_EDGES, **ENDS))
    totals: dict[plain.End, npt.NDArray[Any]] = {}
    for (sender, _), values in answer.edges.items():
        totals[sender] = totals.get(sender, np.zeros(len(TARGETS))) + values
    for (component, layer, head), total in totals.items():
        estimates = answer.estimates["RESIDUAL_PRE" if component == "TOKEN_EMBEDDING" else component][layer]
        node = estimates[:, head] if component == "HEAD_OUT" else estimates
        assert_near(total, node.sum(0), f"{component} {layer} {head}")


@pytest.mark.parametrize("fields", [ACTIVATIONS, ENDS], ids=["activations", "ends"])
def test_nothing_where_nothing_differs(host: Host, fields: dict[str, Any]) -> None:
    for source, position in ((IDS, -1), (LATER, 1)):
        answer = host.trace(request([], source=source, position=position, edges=ALL_EDGES, **fields))
        assert len(answer.edges) == len(host.trace(request([], edges=ALL_EDGES)).edges)
        assert not any(values.any() for values in answer.edges.values())
        assert answer.progress is not None
        assert answer.progress.done == answer.progress.total


# ------------------------------------------------------------------ many prompts

PROMPTS = [IDS, [8, 131, 70, 12, 299], [17, 18, 250, 305, 61, 2]]
SOURCES = [LATER, [8, 131, 70, 15, 299], [17, 20, 251, 306, 61, 2]]
INTEGRATIONS: list[dict[str, Any]] = [{}, {"integration_steps": 2}, ACTIVATIONS, ENDS]


def single(host: Host, number: int, top: int, fields: dict[str, Any]) -> wire.Answer:
    edges = pb.AttributionPatching.Edges(top=top)
    return host.trace(request([], ids=PROMPTS[number], source=SOURCES[number], edges=edges, **fields))


def averages(host: Host, fields: dict[str, Any]) -> None:
    cases = [
        pb.Case(prompt=wire.prompt(prompt), sources=[wire.prompt(source)])
        for prompt, source in zip(PROMPTS, SOURCES, strict=True)
    ]
    edges = pb.AttributionPatching.Edges(top=9)
    asked = pb.TraceRequest(
        cases=cases,
        targets=[wire.target(one) for one in TARGETS],
        reduction=pb.Reduction(),
        attribution_patching=pb.AttributionPatching(edges=edges, **fields),
    )
    stream = [message for message in host.stub.Trace(asked, timeout=DEADLINE) if message.HasField("reduction")]
    of_mean = (part for message in stream if message.reduction.statistic == pb.STATISTIC_MEAN for part in message.edges)
    means = wire.join_edges(of_mean)
    alone = [single(host, number, 0, fields).edges for number in range(len(PROMPTS))]
    expected = {edge: np.mean([one[edge] for one in alone], 0) for edge in alone[0]}
    best = sorted(expected, key=lambda edge: -abs(float(expected[edge][0])))[:9]
    assert set(means) == set(best)
    assert_near(np.array([means[edge] for edge in best]), np.array([expected[edge] for edge in best]))


@pytest.mark.parametrize("fields", INTEGRATIONS, ids=str)
def test_averages_are_the_means_of_single_answers(host: Host, fields: dict[str, Any]) -> None:
    averages(host, fields)


@pytest.mark.parametrize("fields", INTEGRATIONS, ids=str)
def test_averages_in_parallel_blocks(hosts: Hosts, fields: dict[str, Any]) -> None:
    averages(hosts["gptj"], fields)


NAMES = [pb.NamedPositions(), pb.NamedPositions(part=pb.SPAN_PART_LAST)]


@pytest.mark.parametrize("fields", [{}, {"integration_steps": 3}, ENDS], ids=str)
def test_a_name_for_all_positions_gives_one_estimate_of_a_node(host: Host, fields: dict[str, Any]) -> None:
    """So that heads and MLPs can be ranked: it is the sum of the sender's edges, too."""
    names = ["HEAD_OUT", "MLP_OUT"]
    answer = host.trace(request(names, edges=ALL_EDGES, named_positions=NAMES, **fields))
    by_position = host.trace(request(names, **fields))
    for name in names:
        assert_near(answer.estimates[name][:, 0], by_position.estimates[name].sum(1), name)
        assert_near(answer.estimates[name][:, 1], by_position.estimates[name][:, -1], name)
    totals: dict[plain.End, npt.NDArray[Any]] = {}
    for (sender, _), values in answer.edges.items():
        totals[sender] = totals.get(sender, np.zeros(len(TARGETS))) + values
    for layer in range(host.oracle.layers):
        assert_near(totals["MLP_OUT", layer, 0], answer.estimates["MLP_OUT"][layer, 0])
        for head in range(host.oracle.heads):
            assert_near(totals["HEAD_OUT", layer, head], answer.estimates["HEAD_OUT"][layer, 0, head])
