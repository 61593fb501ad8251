"""Causal scrubbing (InterveneRequest.causal_scrubbing), over the wire, against a pass for every node and draw.

S1 to S7 are the identities of causal scrubbing: what must hold in every model, whatever its weights.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sonde.v1 import inspection_pb2 as pb
from torch import Tensor

from tests.conftest import Host, Hosts
from tests.support import scrubbing_oracle, wire
from tests.support.models import EVERY
from tests.support.oracle import Site, Target, target_logit
from tests.support.scrubbing_oracle import Draws, Node, ScrubbingOracle
from tests.support.tolerance import assert_close

EXAMPLES = [
    [5, 130, 77, 301, 9, 41],
    [8, 131, 70, 12, 9, 41],
    [5, 131, 77, 12, 10, 41],
    [8, 130, 70, 301, 11, 42],
    [90, 130, 71, 301, 9, 41],
]
LAST = 5
TARGETS = [Target(41), Target(200, 17)]
FEW = ["gpt2", "llama", "gpt_neox", "gemma2"]
FAMILIES = [pytest.param(name, marks=() if name in FEW else pytest.mark.full) for name in EVERY]
# The two trees in which every kind of place occurs go through all families.
DEEP = ("two and what they read", "direct to a query and a head")
EACH = tuple(range(len(EXAMPLES)))


@dataclass
class Claim:
    site: Site | None = None
    labels: Sequence[int] = ()
    other_labels: Sequence[int] = ()
    direct: bool = False
    inputs: "list[Claim]" = field(default_factory=list)


def flat(claim: Claim, parent: int | None = None, into: list[tuple[Claim, int | None]] | None = None) -> Any:
    """The nodes of a tree with their parents, parents first."""
    found = [] if into is None else into
    number = len(found)
    found.append((claim, parent))
    for one in claim.inputs:
        flat(one, number, found)
    return found


def scrub(claim: Claim, samples: int = 4, **fields: Any) -> pb.InterveneRequest:
    nodes = []
    for one, parent in flat(claim):
        site = None if one.site is None else wire.site(one.site)
        nodes.append(
            pb.CausalScrubbing.Node(
                parent=parent, site=site, direct=one.direct, labels=one.labels, other_labels=one.other_labels
            )
        )
    plan = pb.CausalScrubbing(nodes=nodes, samples=0 if "draws" in fields else samples, **fields)
    return pb.InterveneRequest(
        cases=[pb.Case(prompt=wire.prompt(ids)) for ids in EXAMPLES],
        causal_scrubbing=plan,
        readout=pb.Readout(targets=[wire.target(one) for one in TARGETS], kl_divergence=True),
    )


@dataclass
class Scrubbed:
    context: pb.RunContext
    logits: npt.NDArray[Any]
    draws: npt.NDArray[Any]
    examples: npt.NDArray[Any]


def ask(host: Host, request: pb.InterveneRequest) -> dict[int, Scrubbed]:
    found: dict[int, dict[str, Any]] = {}
    for message in host.stub.Intervene(request, timeout=60):
        own = found.setdefault(message.case_index, {"logits": [], "draws": [], "examples": []})
        if message.HasField("context"):
            own["context"] = message.context
        if message.HasField("readings"):
            own["logits"].append(wire.array(message.readings.logits))
            own["draws"].append(wire.array(message.readings.draws))
        if message.HasField("examples"):
            own["examples"].append(wire.array(message.examples.logits))
    return {
        case: Scrubbed(own["context"], *(np.concatenate(own[name]) for name in ("logits", "draws", "examples")))
        for case, own in found.items()
        if "context" in own
    }


def nodes(claim: Claim) -> list[Node]:
    return [
        Node(parent, one.site, tuple(one.labels), tuple(one.other_labels), one.direct) for one, parent in flat(claim)
    ]


def draw(claim: Claim, reference: int, samples: int, seed: int) -> Draws:
    return scrubbing_oracle.draw(nodes(claim), len(EXAMPLES), reference, samples, seed)


def of(logits: Tensor) -> npt.NDArray[np.float32]:
    """The targets' at the last position."""
    return np.array([target_logit(logits[LAST], target) for target in TARGETS], np.float32)


def head(layer: int, *units: int, **fields: Any) -> Site:
    return Site("HEAD_OUT", (layer,), units, **fields)


TREES = {
    "a leaf": Claim(inputs=[Claim(Site("RESIDUAL_POST", (1,), (), (3, LAST)), labels=[0, 1, 0, 1, 0])]),
    "two and what they read": Claim(
        labels=[0, 0, 1, 1, 0],
        inputs=[
            Claim(head(2, 1), [0, 1, 0, 1, 2], [0, 0, 1, 1, 1], inputs=[Claim(Site("MLP_OUT", (0,)), [1, 1, 2, 2, 2])]),
            Claim(Site("MLP_OUT", (2,), (), (LAST,)), [0, 1, 1, 0, 0]),
        ],
    ),
    "direct to the prediction": Claim(
        inputs=[
            Claim(head(1, 0, 2), [0, 1, 0, 1, 0], direct=True),
            Claim(Site("MLP_OUT", (2,)), [0, 1, 0, 1, 1], direct=True),
            Claim(head(0, 1), [0, 0, 0, 1, 1]),
        ]
    ),
    "heads and what they attend with": Claim(
        inputs=[
            Claim(
                head(2, 1),
                [0, 1, 0, 1, 2],
                [0, 0, 1, 1, 1],
                inputs=[
                    Claim(Site("QUERY", (2,), (1,), (LAST,)), [0, 1, 1, 0, 0], inputs=[Claim(head(0, 2))]),
                    Claim(Site("VALUE", (2,), (0,)), [0, 1, 0, 0, 1]),
                ],
            ),
            Claim(Site("ATTENTION_OUT", (1,)), [1, 0, 1, 0, 1], inputs=[Claim(Site("KEY", (1,), (0,)), EACH)]),
        ]
    ),
    "direct to an MLP and to attention": Claim(
        inputs=[
            Claim(
                Site("MLP_OUT", (2,), (), (3, LAST)),
                [0, 1, 1, 0, 0],
                inputs=[
                    Claim(head(1, 1), [0, 1, 0, 1, 0], direct=True),
                    Claim(Site("TOKEN_EMBEDDING"), [0, 0, 1, 1, 0], direct=True),
                ],
            ),
            Claim(
                Site("ATTENTION_OUT", (1,)),
                inputs=[Claim(Site("MLP_OUT", (0,), (), (1, 2, LAST)), [0, 1, 0, 1, 1], direct=True)],
            ),
        ]
    ),
    "direct to a query and a head": Claim(
        inputs=[
            Claim(Site("QUERY", (2,), (1,)), [0, 1, 1, 0, 0], inputs=[Claim(head(1, 1, 3), EACH, direct=True)]),
            Claim(
                head(2, 2),
                [1, 0, 0, 1, 1],
                inputs=[
                    Claim(head(0, 3), [0, 1, 0, 1, 0], direct=True),
                    Claim(head(1, 0), [0, 1, 0, 1, 0], direct=True),
                ],
            ),
        ]
    ),
}


@pytest.mark.parametrize(
    ("family", "name"), [pytest.param(*one.values, name, marks=one.marks) for one in FAMILIES for name in DEEP]
)
def test_every_draw_is_what_full_passes_say(hosts: Hosts, family: str, name: str) -> None:
    _compare(hosts[family], name)


@pytest.mark.parametrize("name", [name for name in TREES if name not in DEEP])
def test_every_draw_of_shallow_trees_is_what_full_passes_say(host: Host, name: str) -> None:
    _compare(host, name)


def _compare(host: Host, name: str) -> None:
    claim = TREES[name]
    found = ask(host, scrub(claim, 3, seed=5))
    slow = ScrubbingOracle(host.oracle, EXAMPLES)
    assert sorted(found) == list(EACH)
    for reference, own in found.items():
        np.testing.assert_array_equal(own.draws, draw(claim, reference, 3, 5 + reference))
        assert_close(own.logits, np.stack([of(slow.logits(nodes(claim), one)) for one in own.draws]))
    assert_close(found[1].examples, np.stack([of(host.oracle.run(ids).logits) for ids in EXAMPLES]))


def test_s1_labels_that_are_all_different_are_the_unchanged_run(host: Host) -> None:
    claim = Claim(
        labels=EACH, other_labels=EACH, inputs=[Claim(head(1, 1), EACH, EACH, inputs=[Claim(head(0, 2), EACH)])]
    )
    for own in ask(host, scrub(claim)).values():
        assert_close(own.logits, np.tile(own.context.clean.logits, (4, 1)))


def test_s2_one_node_without_labels_is_a_random_example(host: Host) -> None:
    # The prediction of a node without children is the reference's own; with any child it is that of another example.
    claim = Claim(inputs=[Claim(Site("TOKEN_EMBEDDING"))])
    for own in ask(host, scrub(claim, 6)).values():
        assert_close(own.logits, own.examples[own.draws[:, 1, 0]])


def test_s3_and_s4_exact_children_are_the_unchanged_run(host: Host) -> None:
    top = host.oracle.layers - 1
    layers = tuple(range(host.oracle.layers))
    last = Claim(inputs=[Claim(Site("RESIDUAL_POST", (top,)), EACH)])
    heads = tuple(range(host.oracle.heads))
    every = [
        Claim(Site("HEAD_OUT", layers, heads), EACH, direct=True),
        Claim(Site("MLP_OUT", layers), EACH, direct=True),
    ]
    written = Claim(inputs=[*every, Claim(Site("TOKEN_EMBEDDING"), EACH, direct=True)])
    for claim in (last, written):
        for own in ask(host, scrub(claim)).values():
            assert_close(own.logits, np.tile(own.context.clean.logits, (4, 1)))


def test_s7_names_of_labels_make_no_difference_and_draws_can_be_replayed(host: Host) -> None:
    claim = TREES["two and what they read"]
    found = ask(host, scrub(claim, seed=9))
    renamed = copy.deepcopy(claim)
    renamed.inputs[1].labels = [7 if one else -3 for one in renamed.inputs[1].labels]
    assert all(np.array_equal(own.draws, found[case].draws) for case, own in ask(host, scrub(renamed, seed=9)).items())
    given = np.stack([found[case].draws for case in (3, 0)]).astype("<i4")
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=given.shape, data=given.tobytes())
    some = ask(host, scrub(claim, draws=tensor, references=[3, 0]))
    assert list(some) == [3, 0]
    for case, own in some.items():
        assert_close(own.logits, found[case].logits)


def test_examples_of_which_places_in_different_blocks_are_read(llama: Host) -> None:
    """Their runs end in different blocks, where only one position of each is computed."""
    places = [head(1, 0), head(2, 1, positions=(LAST,)), head(3, 2, positions=(LAST,))]
    claim = Claim(inputs=[Claim(place) for place in places])
    given = np.array([[[[0, 4], [1, 1], [2, 2], [1, 1]], [[0, 4], [2, 2], [2, 2], [1, 1]]]], "<i4")
    tensor = pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=given.shape, data=given.tobytes())
    slow = ScrubbingOracle(llama.oracle, EXAMPLES)
    llama.server.scheduler.engine.cache.clear()
    (own,) = ask(llama, scrub(claim, draws=tensor, references=[0])).values()
    assert_close(own.logits, np.stack([of(slow.logits(nodes(claim), one)) for one in given[0]]))


@pytest.mark.parametrize("name", TREES)
def test_the_cost_is_what_is_computed(llama: Host, name: str) -> None:
    engine = llama.server.scheduler.engine
    request = scrub(TREES[name], 5)
    request.dry_run = True
    (told,) = llama.stub.Intervene(request, timeout=60)
    request.dry_run = False
    engine.cache.clear()
    before = engine.work.token_layers
    ask(llama, request)
    assert engine.work.token_layers - before == told.context.cost.token_layers
    assert told.context.cost.runs == 5 * len(EXAMPLES)


def leaf(**fields: Any) -> pb.CausalScrubbing.Node:
    fields.setdefault("parent", 0)
    return pb.CausalScrubbing.Node(**{"site": wire.site(head(1, 1)), **fields})


REFUSED: dict[str, tuple[list[pb.CausalScrubbing.Node], str, str]] = {
    "no node": ([], "causal_scrubbing.nodes", "expected at least one node"),
    "a later parent": ([pb.CausalScrubbing.Node(), leaf(parent=2)], "causal_scrubbing.nodes[1].parent", "0, got 2"),
    "labels": ([pb.CausalScrubbing.Node(), leaf(labels=[1, 2])], "causal_scrubbing.nodes[1].labels", "got 2"),
    "other labels of a leaf": (
        [pb.CausalScrubbing.Node(), leaf(other_labels=EACH)], "causal_scrubbing.nodes[1].other_labels", "no children",
    ),
    "a site of the prediction": ([leaf(parent=None)], "causal_scrubbing.nodes[0].site", "is the prediction"),
    "no site": (
        [pb.CausalScrubbing.Node(), pb.CausalScrubbing.Node(parent=0)], "causal_scrubbing.nodes[1].site", "got none",
    ),
    "a direct reader": (
        [pb.CausalScrubbing.Node(), leaf(site=wire.site(Site("QUERY", (1,))), direct=True)],
        "causal_scrubbing.nodes[1].direct", "got QUERY",
    ),
    "siblings": ([pb.CausalScrubbing.Node(), leaf(), leaf()], "causal_scrubbing.nodes[2].site", "no sibling has"),
    "a child above": (
        [pb.CausalScrubbing.Node(), leaf(), leaf(parent=1, site=wire.site(head(2, 0)))],
        "causal_scrubbing.nodes[2].site", "comes before",
    ),
    "a head below its own query": (
        [
            pb.CausalScrubbing.Node(),
            leaf(site=wire.site(Site("QUERY", (1,), (1,)))),
            leaf(parent=1, site=wire.site(head(1, 1))),
        ],
        "causal_scrubbing.nodes[2].site", "comes before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_faulty_hypotheses_are_refused_by_their_field(gpt2: Host, name: str) -> None:
    nodes, field, said = REFUSED[name]
    request = scrub(Claim())
    del request.causal_scrubbing.nodes[:]
    request.causal_scrubbing.nodes.extend(nodes)
    violations = wire.refusal(gpt2.stub.Intervene(request)).violations
    assert said in violations.get(field, ""), violations


def test_faulty_requests_are_refused_by_their_field(gpt2: Host) -> None:
    claim = TREES["a leaf"]
    longer = scrub(claim)
    longer.cases[4].prompt.CopyFrom(wire.prompt([1, 2, 3]))
    single = scrub(claim)
    del single.cases[:]
    single.prompt.CopyFrom(wire.prompt([1, 2, 3]))
    refused = {
        "cases[4].prompt": longer,
        "cases": single,
        "causal_scrubbing.references[0]": scrub(claim, references=[5]),
        "causal_scrubbing.samples": scrub(claim, -1),
    }
    for name, request in refused.items():
        assert name in wire.refusal(gpt2.stub.Intervene(request)).violations, name
