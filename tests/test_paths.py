"""Edits whose change goes along paths (Edit.path), over the wire, against path patching with everything else frozen.

P1 to P7 are the identities of path patching: what must hold in every model, whatever its weights.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import Host, Hosts
from tests.support import wire
from tests.support.circuit_oracle import CircuitOracle, Node
from tests.support.models import EVERY
from tests.support.oracle import Add, Edit, Patch, Scale, Set, Site, Target
from tests.support.path_oracle import Path, along_paths
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
LAST = len(IDS) - 1
TARGETS = [Target(41), Target(200)]
FEW = ["gpt2", "llama", "gpt_neox", "gemma2"]
FAMILIES = [pytest.param(name, marks=() if name in FEW else pytest.mark.full) for name in EVERY]
LOGITS = Site("LOGITS")


def along(edit: Edit, receivers: Sequence[Site], through: Sequence[Site] = ()) -> pb.Edit:
    message = wire.edit(edit)
    message.path.receivers.extend(wire.site(one) for one in receivers)
    message.path.through.extend(wire.site(one) for one in through)
    return message


def patch(*where: Any, **fields: Any) -> Edit:
    return Edit(Site(*where, **fields), Patch((1,)))


def ask(host: Host, *runs: Sequence[pb.Edit], **fields: Any) -> wire.Answer:
    listed = pb.InterventionList(interventions=[pb.Intervention(edits=run) for run in runs])
    readout = pb.Readout(targets=[wire.target(one) for one in TARGETS], **fields)
    prompts = [wire.prompt(one) for one in (IDS, OTHER)]
    return host.intervene(pb.InterveneRequest(prompt=prompts[0], sources=prompts, list=listed, readout=readout))


def logits(answer: wire.Answer) -> npt.NDArray[Any]:
    return answer.columns["logits"]


def of(values: Any) -> npt.NDArray[np.float32]:
    """The targets' logits at the last position, of logits [T, V]."""
    return np.array([values[LAST, one.token] for one in TARGETS], np.float32)


def writers(host: Host) -> list[Site]:
    layers = tuple(range(host.oracle.layers))
    return [Site("TOKEN_EMBEDDING"), Site("HEAD_OUT", layers), Site("MLP_OUT", layers)]


def moved_from_other(host: Host, site: Site) -> Edit:
    """The same edit as a patch from OTHER, as the oracle takes it: with values."""
    values = host.oracle.run(OTHER).values[site.component, site.layers[0]]
    chosen = values[[p % len(IDS) for p in site.positions]] if site.positions else values
    chosen = chosen[:, list(site.units)] if site.units else chosen
    return Edit(site, Set(np.ascontiguousarray(chosen.numpy())))


@pytest.mark.parametrize("family", FAMILIES)
def test_p1_all_that_is_written_sent_to_the_logits_is_the_source(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    answer = ask(host, [along(Edit(site, Patch((1,))), [LOGITS]) for site in writers(host)])
    assert_close(logits(answer)[0], of(host.oracle.run(OTHER).logits))
    assert answer.context.cost.token_layers <= 4 * len(IDS) * host.oracle.layers


@pytest.mark.parametrize("family", FAMILIES)
def test_p2_and_p3_all_receivers_or_all_between_is_the_plain_edit(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    places = [Site("HEAD_OUT", (1,), (1,)), Site("MLP_OUT", (0,), (), (2, 4)), Site("TOKEN_EMBEDDING")]
    runs = []
    for site in places:
        edit = Edit(site, Patch((1,)))
        above = tuple(range(site.layers[0] + 1, host.oracle.layers)) if site.layers else ()
        later = [Site(name, above) for name in ("QUERY", "KEY", "VALUE")]
        runs.append([along(edit, [*later, Site("MLP_OUT"), LOGITS])])
        runs.append([along(edit, [LOGITS], [Site("HEAD_OUT"), Site("MLP_OUT")])])
        runs.append([wire.edit(edit)])
    found = logits(ask(host, *runs))
    for number in range(len(places)):
        direct, between, plain = found[3 * number : 3 * number + 3]
        assert_close(direct, plain)
        assert_close(between, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_p4_what_changes_nothing_is_the_unchanged_run(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    same = Edit(Site("HEAD_OUT", (0,), (1,)), Patch((0,)))
    answer = ask(host, [along(same, [Site("QUERY", (1,)), LOGITS], [Site("MLP_OUT")])])
    assert_close(logits(answer)[0], answer.context.clean.logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("through", [(), ("MLP_OUT",), ("HEAD_OUT", "MLP_OUT"), ("HEAD_OUT",)], ids=str)
def test_p5_is_path_patching_with_all_else_frozen(hosts: Hosts, family: str, through: tuple[str, ...]) -> None:
    host = hosts[family]
    top = host.oracle.layers - 1
    nodes = [
        Node(name, layer, head)
        for name in through
        for layer in range(host.oracle.layers)
        for head in range(host.oracle.heads if name == "HEAD_OUT" else 1)
    ]
    receivers = [
        [LOGITS],
        [Site("QUERY", (top,), (1,))],
        [Site("KEY", (top,), (0,)), Site("VALUE", (top,), (0,), (1, 3, LAST))],
        [Site("MLP_OUT", (top,), (), (LAST,))],
    ]
    senders = [Site("HEAD_OUT", (0,), (1, 2)), Site("MLP_OUT", (0,)), Site("TOKEN_EMBEDDING", (), (), (1, 2, LAST))]
    between = [Site(name) for name in through]
    runs, expected = [], []
    for sites in receivers:
        for site in senders:
            runs.append([along(Edit(site, Patch((1,))), sites, between)])
            own = Site(site.component, site.layers or (0,), site.units, site.positions)
            edits = [Edit(site, moved_from_other(host, own).operation)]
            expected.append(of(CircuitOracle(host.oracle).path_patch(IDS, edits, sites, nodes)))
    assert_close(logits(ask(host, *runs)), np.stack(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_receivers_feed_each_other_and_several_paths_meet(hosts: Hosts, family: str) -> None:
    """Where four passes would set them apart: a higher receiver sees what a lower one makes of the change."""
    host = hosts[family]
    top = host.oracle.layers - 1
    low, high = Site("HEAD_OUT", (0,), (1, 2)), Site("MLP_OUT", (0,), (), (1, 2, LAST))
    first = Path((Site("VALUE", (1,)), Site("MLP_OUT", (1, top)), Site("QUERY", (top,), (1,), (LAST,)), LOGITS))
    second = Path((Site("KEY", (top,)), Site("MLP_OUT", (top,), (), (2, LAST)), LOGITS), (Site("MLP_OUT", (1,)),))
    plain = Edit(Site("HEAD_OUT", (1,), (0,)), Scale(0.5))
    runs, expected = [], []
    for paths, others in ([(low, first)], []), ([(low, first), (high, second)], []), ([(low, first)], [plain]):
        sent = [along(Edit(site, Patch((1,))), path.receivers, path.through) for site, path in paths]
        runs.append([*map(wire.edit, others), *sent])
        moved = [(moved_from_other(host, site), path) for site, path in paths]
        expected.append(of(along_paths(host.oracle, IDS, moved, others).logits))
    assert_close(logits(ask(host, *runs)), np.stack(expected))


def test_p6_and_p7_direct_effects_add_up_in_the_stream_and_stay_at_their_positions(host: Host) -> None:
    layers = tuple(range(host.oracle.layers))
    sites = [Site("TOKEN_EMBEDDING"), *(Site(n, (layer,)) for layer in layers for n in ("HEAD_OUT", "MLP_OUT"))]
    runs = [[along(Edit(site, Patch((1,))), [LOGITS])] for site in sites]
    answer = ask(host, *runs, activations=[pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[-1])])
    before = host.oracle.run(IDS).values["RESIDUAL_POST", layers[-1]].numpy()
    # What goes to the logits alone is not in the stream: every run's is the unchanged one.
    for number in range(len(sites)):
        assert_close(answer.activations[number, 0, layers[-1]], before)
    away = [along(patch("HEAD_OUT", (0,), (), (1,)), [LOGITS])], [along(patch("HEAD_OUT", (0,), (), (LAST,)), [LOGITS])]
    found = ask(host, *away)
    assert_close(logits(found)[0], found.context.clean.logits)
    assert np.abs(logits(found)[1] - found.context.clean.logits).max() > 1e-3


def test_every_operation_and_the_distances(host: Host) -> None:
    """A scale by 0 along all paths is an ablation, and the sender would move as far as that moves it."""
    width = host.oracle.head_size
    rng = np.random.RandomState(3)
    operations = [Scale(0.0), Set(rng.randn(width).astype(np.float32)), Patch((1,)), Patch((0, 1))]
    runs: list[list[pb.Edit]] = []
    for operation in operations:
        edit = Edit(Site("HEAD_OUT", (0,), (1,), (2, LAST)), operation)
        runs += [[along(edit, [LOGITS], [Site("HEAD_OUT"), Site("MLP_OUT")])], [wire.edit(edit)]]
    answer = ask(host, *runs)
    found, norms = logits(answer), answer.columns["edit_norms"]
    assert_close(found[::2], found[1::2])
    assert_close(norms[::2], norms[1::2])


def test_neurons_and_streams_are_sent_too(host: Host) -> None:
    """All that comes after it sees the change of a neuron, or of the stream, as it would that of a plain edit."""
    runs: list[list[pb.Edit]] = []
    for site in (
        Site("NEURON", (1,), (3, 5)),
        Site("NEURON", (0,), (2,), (1, LAST)),
        Site("ATTENTION_OUT", (1,), (), (2,)),
        Site("RESIDUAL_MID", (0,), (), (3, LAST)),
        Site("RESIDUAL_POST", (0,), (), (1,)),
        Site("RESIDUAL_PRE", (1,), (), (1, 4)),
    ):
        edit = Edit(site, Patch((1,)))
        lowest = [Site("MLP_OUT", (1,)), Site("QUERY", (2,), (0,)), LOGITS]
        between = [Site("HEAD_OUT"), Site("MLP_OUT")]
        runs += [[along(edit, [LOGITS], between)], [wire.edit(edit)]]
        runs += [[along(edit, lowest, between)], [along(edit, [*reversed(lowest), *lowest], between)]]
    found = logits(ask(host, *runs))
    assert_close(found[::4], found[1::4])
    # Sites that name a place twice name it once.
    assert_close(found[2::4], found[3::4])


def some_edits(draw: random.Random, host: Host, components: Sequence[str]) -> list[Edit]:
    """Edits of any places of these components, which may overlap."""
    found = []
    for component in draw.choices(components, k=draw.randint(1, 4)):
        layers = (draw.randrange(host.oracle.layers - 1),) if component != "TOKEN_EMBEDDING" else ()
        units = (draw.randrange(host.oracle.units(component)),) if component in ("HEAD_OUT", "NEURON") else ()
        positions = tuple(sorted(draw.sample(range(len(IDS)), draw.choice([2, 4, len(IDS)]))))
        moved = np.random.RandomState(draw.randrange(9)).randn(1).astype(np.float32)
        operation = draw.choice([Scale(draw.choice([0.5, 2.0])), Patch((1,)), Add(moved)])
        found.append(Edit(Site(component, layers, units, positions), operation))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_p2_and_p3_of_any_edits_together(hosts: Hosts, family: str) -> None:
    """Runs of one request, each with several edits: along all there is they are the edits without a path.

    Nothing goes through what is a receiver too, so what is named there divides the edits into columns and no more.
    """
    host, draw = hosts[family], random.Random(family)
    everything = [Site("QUERY"), Site("KEY"), Site("VALUE"), Site("MLP_OUT"), LOGITS]
    between = [Site("HEAD_OUT"), Site("MLP_OUT")]
    inside = "NEURON" if "NEURON" in host.oracle.components else "MLP_OUT"
    runs, expected = [], []
    for _ in range(8):
        edits = some_edits(draw, host, ["TOKEN_EMBEDDING", "HEAD_OUT", "MLP_OUT"])
        runs.append([along(edit, [LOGITS], between) for edit in edits])
        expected.append(of(host.oracle.run(IDS, edits, [IDS, OTHER]).logits))
        edits = some_edits(draw, host, ["TOKEN_EMBEDDING", "HEAD_OUT", inside])
        # Edits of one place stay together.
        apart = {(edit.site.component, edit.site.layers): draw.choice([(), between]) for edit in edits}
        runs.append([along(edit, everything, apart[edit.site.component, edit.site.layers]) for edit in edits])
        expected.append(of(host.oracle.run(IDS, edits, [IDS, OTHER]).logits))
    engine = host.server.scheduler.engine
    engine.cache.clear()
    before = engine.work.token_layers
    answer = ask(host, *runs)
    assert_close(logits(answer), np.stack(expected))
    assert engine.work.token_layers - before == answer.context.cost.token_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_between_do_what_they_do_in_the_model(hosts: Hosts, family: str) -> None:
    """A change of nothing, along all paths, is nothing, whatever is changed in the heads and MLPs that it meets."""
    host = hosts[family]
    nothing = along(Edit(Site("HEAD_OUT", (0,)), Scale(1.0)), [LOGITS], [Site("HEAD_OUT"), Site("MLP_OUT")])
    places = [Site("VALUE", (1,), (0,)), Site("HEAD_OUT", (1,), (1,), (2, LAST)), Site("MLP_OUT", (1,))]
    plain = [wire.edit(Edit(site, Scale(0.5))) for site in places]
    found = logits(ask(host, *([edit, nothing] for edit in plain), *([edit] for edit in plain)))
    assert_close(found[:3], found[3:])


def test_edits_with_equal_paths_act_together_and_others_apart(host: Host) -> None:
    """Two heads that go through an MLP together are not the sum of each; plain edits change what paths start from."""
    first, second = patch("HEAD_OUT", (0,), (0,)), patch("HEAD_OUT", (0,), (1,))
    mlps = [Site("MLP_OUT")]
    both = patch("HEAD_OUT", (0,), (0, 1))
    plain = wire.edit(Edit(Site("TOKEN_EMBEDDING"), Scale(0.5)))
    answer = ask(
        host,
        [along(first, [LOGITS], mlps), along(second, [LOGITS], mlps)],
        [along(both, [LOGITS], mlps)],
        [plain, along(both, [LOGITS], [Site("HEAD_OUT"), Site("MLP_OUT")])],
        [plain, wire.edit(both)],
    )
    found = logits(answer)
    assert_close(found[0], found[1])
    assert_close(found[2], found[3])


def test_a_sweep_of_direct_effects_is_its_runs_one_by_one_and_costs_no_block(host: Host) -> None:
    layers, heads = host.oracle.layers, host.oracle.heads
    swept = along(patch("HEAD_OUT"), [LOGITS])
    prompts = [wire.prompt(one) for one in (IDS, OTHER)]
    request = pb.InterveneRequest(
        prompt=prompts[0],
        sources=prompts,
        sweep=pb.Sweep(edit=swept, together=[pb.AXIS_POSITION]),
        readout=pb.Readout(targets=[wire.target(one) for one in TARGETS]),
    )
    answer = host.intervene(request)
    runs = [[along(patch("HEAD_OUT", (layer,), (h,)), [LOGITS])] for layer in range(layers) for h in range(heads)]
    assert_close(logits(answer), logits(ask(host, *runs)))
    # The two prompts, and each of them once more for what heads write.
    assert answer.context.cost.token_layers == 4 * layers * len(IDS)
    request.dry_run = True
    assert host.intervene(request).context.cost.token_layers == answer.context.cost.token_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cost_is_what_is_computed(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    top = host.oracle.layers - 1
    queries = [Site("QUERY", (top,), (1,), (LAST,))]
    runs = [
        [along(patch("HEAD_OUT", (0,)), queries)],
        [along(patch("HEAD_OUT", (0,)), [LOGITS], [Site("MLP_OUT")])],
        [along(patch("MLP_OUT", (0,), (), (3,)), [Site("MLP_OUT", (top,)), LOGITS], [Site("HEAD_OUT")])],
    ]
    for run in runs:
        engine = host.server.scheduler.engine
        engine.cache.clear()
        before = engine.work.token_layers
        answer = ask(host, run)
        assert engine.work.token_layers - before == answer.context.cost.token_layers


REFUSED = {
    "a receiver that reads nothing": (
        [along(patch("HEAD_OUT", (0,)), [Site("RESIDUAL_PRE", (1,))])],
        "list.interventions[0].edits[0].path.receivers[0].component",
        "expected one of QUERY, KEY, VALUE, MLP_OUT, LOGITS, got RESIDUAL_PRE",
    ),
    "no receiver": (
        [along(patch("HEAD_OUT", (0,)), [])],
        "list.interventions[0].edits[0].path.receivers",
        "expected at least one site",
    ),
    "a node between that is none": (
        [along(patch("HEAD_OUT", (0,)), [LOGITS], [Site("NEURON")])],
        "list.interventions[0].edits[0].path.through[0].component",
        "expected HEAD_OUT or MLP_OUT, got NEURON",
    ),
    "positions between": (
        [along(patch("HEAD_OUT", (0,)), [LOGITS], [Site("MLP_OUT", (), (), (1,))])],
        "list.interventions[0].edits[0].path.through[0].positions",
        "expected none",
    ),
    "what does not write": (
        [along(patch("QUERY", (0,)), [LOGITS])],
        "list.interventions[0].edits[0].path",
        "got QUERY",
    ),
    "a receiver below": (
        [along(patch("HEAD_OUT", (0, 2)), [Site("QUERY", (1,))])],
        "list.interventions[0].edits[0].path.receivers",
        "none reads after HEAD_OUT of layer 2",
    ),
    "another position": (
        [along(patch("HEAD_OUT", (0,), (), (1,)), [Site("QUERY", (1,), (), (2,))])],
        "list.interventions[0].edits[0].path.receivers",
        "stays at its position",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_faulty_paths_are_refused_by_their_field(gpt2: Host, name: str) -> None:
    run, field, said = REFUSED[name]
    request = pb.InterveneRequest(
        prompt=wire.prompt(IDS),
        sources=[wire.prompt(IDS), wire.prompt(OTHER)],
        list=pb.InterventionList(interventions=[pb.Intervention(edits=run)]),
    )
    refused = wire.refusal(gpt2.stub.Intervene(request))
    assert said in refused.violations[field]
