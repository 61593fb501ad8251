"""The slow oracles of paths, circuits, scrubbing and discovery, by what must hold in every model, in float64.

P, C and S are the identities of path patching, of circuits and of causal scrubbing. Nothing here asks a server.
"""

from collections.abc import Callable
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import scrubbing_oracle
from tests.support.circuit_oracle import CircuitOracle, Edge, Node, set_to
from tests.support.discovery_oracle import discover, divergence, fall
from tests.support.models import load_plain, save_model
from tests.support.oracle import Add, Edit, Oracle, Scale, Site, Target
from tests.support.path_oracle import Path, along_paths
from tests.support.scrubbing_oracle import ScrubbingOracle

IDS = [5, 130, 77, 301, 9]
OTHER = [8, 131, 70, 12, 299]
EXAMPLES = [IDS, OTHER, [5, 131, 77, 12, 10], [8, 130, 70, 301, 11]]
EACH = tuple(range(len(EXAMPLES)))
LOGITS = Site("LOGITS")
ALL_BETWEEN = (Site("HEAD_OUT"), Site("MLP_OUT"))
EVERY_READ = (*(Site(name) for name in ("QUERY", "KEY", "VALUE", "MLP_OUT")), LOGITS)
PARALLEL = ["gpt_neox", "falcon-multi-query", "phi"]
POST_NORMED = ["gemma2", "gemma3_text", "olmo2"]
FAMILIES = [
    pytest.param(name, marks=() if name == "llama" else pytest.mark.full)
    for name in ("llama", "gpt2", *PARALLEL, *POST_NORMED)
]
PRE_NORMED = [one for one in FAMILIES if one.values[0] not in POST_NORMED]
Make = Callable[[str], Oracle]

# What the other tests compare with is compared with itself, in double precision.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Oracle] = {}

    def make(family: str) -> Oracle:
        if family not in made:
            folder: Folder = tmp_path_factory.mktemp(family)
            model = load_plain(save_model(family, folder), torch.float64)
            _widen_norms(model)
            made[family] = Oracle(model)
        return made[family]

    return make


def _widen_norms(model: Any) -> None:
    """Root-mean-square norms of transformers round to float32 on the way; these do not."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = getattr(module, "variance_epsilon", None) or module.eps
            gain = module.weight + 1 if type(module).__name__.startswith("Gemma") else module.weight
            module.forward = lambda x, gain=gain, epsilon=epsilon: (
                gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
            )


def same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def differ(first: Tensor, second: Tensor) -> None:
    assert float((first - second).abs().max()) > 1e-3


def moved(oracle: Oracle, site: Site, ids: list[int] = OTHER) -> Edit:
    """A site's value in another prompt."""
    return set_to(site, oracle.run(ids).values[site.component, (site.layers or (0,))[0]])


def writers(oracle: Oracle) -> list[Site]:
    layers = range(oracle.layers)
    return [Site("TOKEN_EMBEDDING"), *(Site(name, (layer,)) for layer in layers for name in ("HEAD_OUT", "MLP_OUT"))]


def shuffled(edges: list[Edge], seed: int = 0) -> list[Edge]:
    return [edges[number] for number in np.random.RandomState(seed).permutation(len(edges))]


# ------------------------------------------------------------ paths


@pytest.mark.parametrize("family", FAMILIES)
def test_p1_all_writers_sent_to_the_logits_are_the_source(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    sent = [(moved(oracle, site), Path((LOGITS,))) for site in writers(oracle)]
    same(along_paths(oracle, IDS, sent).logits, oracle.run(OTHER).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "site", [Site("HEAD_OUT", (1,), (1,)), Site("MLP_OUT", (0,), (), (2, 4)), Site("TOKEN_EMBEDDING")], ids=str
)
def test_p2_and_p3_every_read_or_all_between_is_the_plain_edit(oracles: Make, family: str, site: Site) -> None:
    oracle = oracles(family)
    edit = moved(oracle, site)
    plain = oracle.run(IDS, [edit]).logits
    differ(plain, oracle.run(IDS).logits)
    same(along_paths(oracle, IDS, [(edit, Path(EVERY_READ))]).logits, plain)
    same(along_paths(oracle, IDS, [(edit, Path((LOGITS,), ALL_BETWEEN))]).logits, plain)


def test_p2_holds_for_every_place_and_operation(oracles: Make) -> None:
    oracle = oracles("gpt2")
    steer, turn = Add(np.full(1, 0.3)), Scale(-1.0)
    for edit in (
        Edit(Site("RESIDUAL_PRE", (2,)), turn),
        Edit(Site("RESIDUAL_MID", (1,), (), (3,)), steer),
        Edit(Site("RESIDUAL_POST", (0,)), steer),
        Edit(Site("ATTENTION_OUT", (2,)), turn),
        Edit(Site("NEURON", (2,), (3, 17)), steer),
        Edit(Site("HEAD_OUT", (2,), (0, 2)), turn),
    ):
        same(along_paths(oracle, IDS, [(edit, Path(EVERY_READ))]).logits, oracle.run(IDS, [edit]).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_p4_what_changes_nothing_is_the_unchanged_run(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    clean = oracle.run(IDS).logits
    still = moved(oracle, Site("HEAD_OUT", (0,), (1,)), IDS)
    same(along_paths(oracle, IDS, [(still, Path((Site("QUERY", (1,)), LOGITS), ALL_BETWEEN))]).logits, clean)
    above = moved(oracle, Site("HEAD_OUT", (2,), (1,)))
    assert torch.equal(along_paths(oracle, IDS, [(above, Path((Site("QUERY", (1,)),), ALL_BETWEEN))]).logits, clean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("through", [(), ("MLP_OUT",), ("HEAD_OUT",), ("HEAD_OUT", "MLP_OUT")], ids=str)
def test_p5_is_four_passes_with_all_else_frozen(oracles: Make, family: str, through: tuple[str, ...]) -> None:
    oracle = oracles(family)
    circuits, top = CircuitOracle(oracle), oracle.layers - 1
    between = [node for node in circuits.senders() if node.component in through]
    heads, mlp = moved(oracle, Site("HEAD_OUT", (0,), (1, 2))), moved(oracle, Site("MLP_OUT", (0,), (), (1, 2, 4)))
    for receivers, senders in (
        ([LOGITS], [mlp]),
        ([Site("QUERY", (top,), (1,))], [heads]),
        ([Site("KEY", (top,), (0,)), Site("VALUE", (top,), (0,), (1, 3, 4))], [mlp]),
        # What sends is set in the four passes, and so what comes through it is lost: it is not gone through as well.
        ([Site("MLP_OUT", (top,), (), (-1,))], [heads] if "MLP_OUT" in through else [heads, mlp]),
    ):
        path = Path(tuple(receivers), tuple(Site(name) for name in through))
        four = circuits.path_patch(IDS, senders, receivers, between)
        same(along_paths(oracle, IDS, [(edit, path) for edit in senders]).logits, four)


def test_p5_ends_where_receivers_feed_each_other(oracles: Make) -> None:
    """Four passes set receivers, so that a higher one does not see what a lower one makes of the change."""
    oracle = oracles("gpt2")
    receivers = [Site("VALUE", (1,)), Site("VALUE", (3,))]
    edit = moved(oracle, Site("TOKEN_EMBEDDING"))
    four = CircuitOracle(oracle).path_patch(IDS, [edit], receivers, [])
    differ(along_paths(oracle, IDS, [(edit, Path(tuple(receivers)))]).logits, four)


@pytest.mark.parametrize("family", PRE_NORMED)
def test_p6_and_p7_direct_effects_add_up_in_the_stream_and_stay_at_their_positions(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    top = oracle.layers - 1
    before, after = (oracle.run(ids).values["RESIDUAL_POST", top] for ids in (IDS, OTHER))
    alone = [along_paths(oracle, IDS, [(moved(oracle, site), Path((LOGITS,)))]).stream for site in writers(oracle)]
    same(torch.stack([stream - before for stream in alone]).sum(0), after - before)
    edit = moved(oracle, Site("HEAD_OUT", (0,), (), (2,)))
    mlps = along_paths(oracle, IDS, [(edit, Path((LOGITS,), (Site("MLP_OUT"),)))]).logits
    clean = oracle.run(IDS).logits
    differ(mlps[2], clean[2])
    same(mlps[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_equal_paths_act_together_and_others_apart(oracles: Make) -> None:
    oracle = oracles("gpt2")
    two = [moved(oracle, Site("HEAD_OUT", (0,), (unit,))) for unit in (0, 1)]
    both = moved(oracle, Site("HEAD_OUT", (0,), (0, 1)))
    mlps = Path((LOGITS,), (Site("MLP_OUT"),))
    together = along_paths(oracle, IDS, [(one, mlps) for one in two]).logits
    same(together, along_paths(oracle, IDS, [(both, mlps)]).logits)
    elsewhere = Path((LOGITS, LOGITS), (Site("MLP_OUT", (1,)), Site("MLP_OUT", (2,)), Site("MLP_OUT", (3,))))
    differ(together, along_paths(oracle, IDS, [(two[0], mlps), (two[1], elsewhere)]).logits)


# ------------------------------------------------------------ circuits


@pytest.mark.parametrize("family", FAMILIES)
def test_c1_and_c2_all_edges_are_the_unchanged_run_and_none_the_source(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    circuits = CircuitOracle(oracle)
    other = oracle.run(OTHER).values
    same(circuits.circuit(IDS, other, []), oracle.run(IDS).logits)
    same(circuits.circuit(IDS, other, circuits.edges()), oracle.run(OTHER).logits)


@pytest.mark.parametrize("family", PRE_NORMED)
def test_c3_edits_with_paths_are_reads_written_out(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    circuits = CircuitOracle(oracle)
    every = circuits.edges()
    missing = shuffled(every)[: len(every) // 3]
    sent = []
    for sender in circuits.senders():
        receivers = tuple(_site(receiver) for one, receiver in missing if one == sender)
        if receivers:
            sent.append((moved(oracle, _site(sender)), Path(receivers)))
    same(along_paths(oracle, IDS, sent).logits, circuits.circuit(IDS, oracle.run(OTHER).values, missing))


def _site(node: Node) -> Site:
    layers = () if node.component in ("TOKEN_EMBEDDING", "LOGITS") else (node.layer,)
    return Site(node.component, layers, (node.head,) if node.component not in ("MLP_OUT", *_WHOLE) else ())


_WHOLE = ("TOKEN_EMBEDDING", "LOGITS")


def test_c5_what_nothing_reads_makes_no_difference(oracles: Make) -> None:
    oracle = oracles("gpt2")
    circuits = CircuitOracle(oracle)
    dead = Node("HEAD_OUT", 1, 1)
    written = [edge for edge in circuits.edges() if edge[0] == dead]
    read = [edge for edge in circuits.edges() if edge[1] == Node("QUERY", 1, 1)]
    other = oracle.run(OTHER).values
    same(circuits.circuit(IDS, other, written), circuits.circuit(IDS, other, [*written, *read]))


# ------------------------------------------------------------ causal scrubbing


def scrubbed(oracle: Oracle, nodes: list[scrubbing_oracle.Node], reference: int, samples: int = 2) -> Any:
    """Each draw with its logits."""
    drawn = scrubbing_oracle.draw(nodes, len(EXAMPLES), reference, samples, 7)
    scrubbing = ScrubbingOracle(oracle, EXAMPLES)
    return [(one, scrubbing.logits(nodes, one)) for one in drawn]


def node(*of: Any, **fields: Any) -> scrubbing_oracle.Node:
    return scrubbing_oracle.Node(*of, **fields)


def test_s1_labels_that_are_all_different_are_the_unchanged_run(oracles: Make) -> None:
    oracle = oracles("llama")
    nodes = [
        node(other_labels=EACH),
        node(0, Site("HEAD_OUT", (2,), (1,)), EACH, EACH),
        node(1, Site("MLP_OUT", (1,)), EACH, EACH, direct=True),
        node(2, Site("HEAD_OUT", (0,), (2,)), EACH, direct=True),
    ]
    for _, logits in scrubbed(oracle, nodes, 1):
        same(logits, oracle.run(EXAMPLES[1]).logits)


def test_s2_a_prediction_of_which_nothing_matters_is_that_of_any_example(oracles: Make) -> None:
    oracle = oracles("gpt2")
    seen = set()
    for drawn, logits in scrubbed(oracle, [node(), node(0, Site("TOKEN_EMBEDDING"))], 0, 12):
        same(logits, oracle.run(EXAMPLES[drawn[1, 0]]).logits)
        seen.add(int(drawn[1, 0]))
    assert seen == set(EACH)


@pytest.mark.parametrize("family", FAMILIES)
def test_s3_and_s4_all_that_the_prediction_comes_from_is_enough(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    clean = oracle.run(EXAMPLES[2]).logits
    layers, heads = tuple(range(oracle.layers)), tuple(range(oracle.heads))
    last = [node(), node(0, Site("RESIDUAL_POST", layers[-1:]), EACH)]
    written = [Site("TOKEN_EMBEDDING"), Site("HEAD_OUT", layers, heads), Site("MLP_OUT", layers)]
    for nodes in (last, [node(), *(node(0, site, EACH, direct=True) for site in written)]):
        for _, logits in scrubbed(oracle, nodes, 2):
            same(logits, clean)


@pytest.mark.parametrize("family", FAMILIES)
def test_s5_a_query_and_what_it_reads_is_path_patching(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    query, head = Site("QUERY", (2,), (1,)), Site("HEAD_OUT", (0,), (2, 3))
    nodes = [node(), node(0, query), node(1, head, direct=True)]
    drawn = np.array([[0, 0], [0, 0], [1, 1]])
    found = ScrubbingOracle(oracle, EXAMPLES).logits(nodes, drawn)
    same(found, CircuitOracle(oracle).path_patch(IDS, [moved(oracle, head)], [query], []))


@pytest.mark.parametrize("family", FAMILIES)
def test_s6_a_chain_of_direct_nodes_is_the_circuit_of_its_edges(oracles: Make, family: str) -> None:
    oracle = oracles(family)
    circuits = CircuitOracle(oracle)
    group = oracle.heads // oracle.key_value_heads
    nodes = [
        node(),
        node(0, Site("MLP_OUT", (2,)), direct=True),
        node(1, Site("HEAD_OUT", (1,), (3,)), direct=True),
        node(2, Site("MLP_OUT", (0,)), direct=True),
    ]
    reads = [Node("QUERY", 1, 3), *(Node(name, 1, 3 // group) for name in ("KEY", "VALUE"))]
    kept = [(Node("HEAD_OUT", 1, 3), Node("MLP_OUT", 2, 0)), (Node("MLP_OUT", 2, 0), Node("LOGITS", 0, 0))]
    kept += [(Node("MLP_OUT", 0, 0), read) for read in reads]
    # The last node is what it is in the prompt's unchanged run, and so all that comes before it is too.
    kept += [edge for edge in circuits.edges() if edge[1].layer == 0 and edge[1].component != "LOGITS"]
    found = ScrubbingOracle(oracle, EXAMPLES).logits(nodes, np.array([[0, 1], [0, 1], [0, 1], [0, 0]]))
    missing = [edge for edge in circuits.edges() if edge not in kept]
    same(found, circuits.circuit(IDS, oracle.run(OTHER).values, missing))


def test_s7_labels_are_names_and_draws_follow_from_the_seed() -> None:
    place = Site("MLP_OUT", (1,))
    first = [node(), node(0, place, (0, 1, 0, 1)), node(1, place, (2, 2, 2, 2), EACH)]
    second = [node(), node(0, place, (9, -4, 9, -4)), node(1, place)]
    drawn, renamed = (scrubbing_oracle.draw(one, 4, 3, 20, 11) for one in (first, second))
    np.testing.assert_array_equal(drawn, renamed)
    own, other = drawn[..., 0], drawn[..., 1]
    assert set(own[:, 0]) == {3}
    assert set(own[:, 1]) == {1, 3}
    assert set(own[:, 2]) == set(other[:, 0]) == set(EACH)
    assert (other[:, 2] == own[:, 2]).all()


# ------------------------------------------------------------ circuit discovery


def test_discovery_keeps_what_the_loss_needs(oracles: Make) -> None:
    oracle = oracles("gpt2")
    circuits = CircuitOracle(oracle)
    some = [(s, r) for s, r in circuits.edges() if s.component == "TOKEN_EMBEDDING" or s.layer in (0, 3)]
    some = [(s, r) for s, r in some if r.layer in (0, 3) and r.component in ("VALUE", "MLP_OUT", "LOGITS")]
    for threshold, loss in (
        (0.02, divergence(circuits, some, [(IDS, OTHER)])),
        (0.1, fall(circuits, some, [(IDS, OTHER)], Target(41, 17))),
    ):
        trials = discover(circuits, some, threshold, loss)
        kept = {trial.edge for trial in trials if trial.kept}
        # The growths of all that was removed add up to what the circuit has lost; what was not tried loses nothing.
        lost = sum(trial.growth for trial in trials if not trial.kept)
        np.testing.assert_allclose(loss(kept) - loss(set(some)), lost, rtol=1e-9, atol=1e-9)
        assert all((trial.growth >= threshold) == trial.kept for trial in trials)
        assert 0 < len(kept) < len(trials)


def test_discovery_without_mercy_leaves_the_source(oracles: Make) -> None:
    oracle = oracles("gpt2")
    circuits = CircuitOracle(oracle)
    chosen = [edge for edge in circuits.edges() if edge[1].component == "LOGITS" or edge[1].layer == 3]
    loss = divergence(circuits, chosen, [(IDS, OTHER)])
    trials = discover(circuits, chosen, 1e6, loss)
    assert not any(trial.kept for trial in trials)
    # All edges of the logits are removed first, and then nothing reads any other node.
    assert {trial.edge[1].component for trial in trials} == {"LOGITS"}
    expected = oracle.kl_divergence(oracle.run(IDS).logits[-1], oracle.run(OTHER).logits[-1])
    np.testing.assert_allclose(loss(set()), expected)
