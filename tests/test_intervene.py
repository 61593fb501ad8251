"""Intervene against the oracle: every edit at every component, lists and sweeps, every readout."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, EFFORT, Host
from tests.support import oracle, wire
from tests.support.oracle import COMPONENTS, UNLAYERED, Edit, Run, Site, Sweep, Target
from tests.support.strategies import Bounds, kinds, plans, sites, sweeps
from tests.support.tolerance import assert_close, assert_same_ranking

IDS = [5, 130, 77, 301, 9, 260, 41]
SOURCES = [[8, 131, 70, 12, 299, 261, 40], [5, 200, 77, 33, 9, 44, 41], [17, 18, 250, 305, 61, 2, 99, 101, 307]]
TARGETS = [Target(41), Target(200, contrast=12)]
MESSAGE_LIMIT = 1 << 20
SLACK = 1 << 16
"""Of a message of `about 1 MiB`: names and shapes beside the values."""
KINDS = ("scale", "set", "add", "multiply", "patch", "noise", "project_out", "knockout")


def bounds(host: Host) -> Bounds:
    return Bounds(host.oracle, len(IDS), same_length=(0, 1), longer=(2,))


def check_readings(
    host: Host, answer: wire.Answer, runs: Sequence[Run], targets: Sequence[Target] = TARGETS, position: int = -1
) -> None:
    """Every column of the readings that came, run by run."""
    unchanged = host.oracle.run(IDS).logits[position]
    most = max(len(run.norms) for run in runs)
    norms = np.array([run.norms + [0.0] * (most - len(run.norms)) for run in runs])
    predictions = [host.oracle.predict(run.logits[position], targets) for run in runs]
    columns = answer.columns
    assert_close(columns["log_probabilities"], [one.log_probabilities for one in predictions], "log-probabilities")
    assert_close(columns["logits"], [one.logits for one in predictions], "logits")
    assert_close(columns["edit_norms"], norms, "edit norms")
    if "kl_divergences" in columns:
        expected = [host.oracle.kl_divergence(unchanged, run.logits[position]) for run in runs]
        assert_close(columns["kl_divergences"], expected, "KL")
    if "top_token_ids" in columns:
        for index, run in enumerate(runs):
            everything = run.logits[position].log_softmax(-1).numpy()
            ids, values = columns["top_token_ids"][index], columns["top_log_probabilities"][index]
            assert_same_ranking(ids, values, everything, f"run {index}")
            assert all(answer.token_texts[token] is not None for token in ids.tolist())


def check_plan(host: Host, plan: Sequence[Sequence[Edit]] | Sweep, position: int | None = None) -> wire.Answer:
    """Asks for a plan with every readout and compares the answer with the oracle's runs."""
    request = wire.intervene(IDS, plan, TARGETS, SOURCES, kl_divergence=True, top_k=3, position=position)
    answer = host.intervene(request)
    listed = host.oracle.expand(plan, len(IDS)) if isinstance(plan, Sweep) else plan
    read = -1 if position is None else position
    check_readings(host, answer, [host.oracle.run(IDS, run, SOURCES) for run in listed], position=read)
    return answer


# ------------------------------------------------------------------ lists


def one_edit(host: Host, component: str, kind: str) -> Edit:
    """A typical edit of a kind at a component: two layers, two units, two positions."""
    site = Site(component, () if component in UNLAYERED else (1, 3), (0, 1), (2, -1))
    where = host.oracle.selection(site, len(IDS))
    shape = (*where[0].shape, *host.oracle.shape(component, len(IDS))[2:])
    values = np.random.RandomState(3).randn(*shape).astype(np.float32)
    operations: dict[str, oracle.Operation] = {
        "scale": oracle.Scale(-0.5),
        "set": oracle.Set(values),
        "add": oracle.Add(values),
        "multiply": oracle.Multiply(values),
        "patch": oracle.Patch((0, 1)),
        "noise": oracle.Noise(0.75, 5),
        "project_out": oracle.ProjectOut(values.reshape(-1, shape[-1])[0]),
        "knockout": oracle.Knockout((0, 2)),
    }
    return Edit(site, operations[kind])


@pytest.mark.parametrize(
    ("component", "kind"),
    [(component, kind) for component in COMPONENTS for kind in KINDS if kind in kinds(component, False)],
)
def test_each_edit_at_each_component(host: Host, component: str, kind: str) -> None:
    check_plan(host, [[one_edit(host, component, kind)]])


@settings(max_examples=25 * EFFORT)
@given(data=st.data())
def test_any_list_of_interventions(host: Host, data: st.DataObject) -> None:
    plan = data.draw(plans(bounds(host)))
    check_plan(host, plan, data.draw(st.sampled_from([None, 3, -2])))


def test_edits_of_one_place_act_in_order(host: Host) -> None:
    site = Site("MLP_OUT", (2,), positions=(-1,))
    shift = Edit(site, oracle.Add(np.linspace(-2, 2, host.oracle.hidden_size, dtype=np.float32)))
    double = Edit(site, oracle.Scale(2.0))
    answer = check_plan(host, [[shift, double], [double, shift]])
    first, second = answer.columns["log_probabilities"]
    assert np.abs(first - second).max() > 1e-3


def test_the_order_of_units_and_positions_is_that_of_the_values(host: Host) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    check_plan(host, [[Edit(Site("NEURON", (1,), (7, 2, 5), (6, 0)), oracle.Set(values))]])


def test_a_half_precision_value_means_what_it_says(host: Host) -> None:
    request = wire.intervene(IDS, [[Edit(Site("MLP_OUT", (1,)), oracle.Set(np.array(0.5, np.float32)))]], TARGETS)
    expected = host.intervene(request).columns["log_probabilities"]
    for data_type, data in ((pb.DATA_TYPE_FLOAT16, np.float16(0.5).tobytes()), (pb.DATA_TYPE_BFLOAT16, b"\x00\x3f")):
        request.list.interventions[0].edits[0].set.CopyFrom(pb.Tensor(data_type=data_type, data=data))
        assert_close(host.intervene(request).columns["log_probabilities"], expected)


def test_noise_without_a_seed_has_seed_1(host: Host) -> None:
    site = Site("RESIDUAL_POST", (0, 2), positions=(1, 2))
    answer = check_plan(host, [[Edit(site, oracle.Noise(0.5))], [Edit(site, oracle.Noise(0.5, 1))]])
    np.testing.assert_array_equal(*answer.columns["edit_norms"])


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_seeds_have_32_bits(host: Host, seed: int) -> None:
    check_plan(host, [[Edit(Site("RESIDUAL_POST", (1,), positions=(1, 2)), oracle.Noise(0.5, seed))]])


@pytest.mark.parametrize(
    "operation",
    [
        oracle.Scale(0.0),
        oracle.Scale(-1.0),
        oracle.Multiply(np.array([-0.5], np.float32)),
        oracle.Noise(1.0),
    ],
    ids=["zero", "negative", "multiply", "noise"],
)
def test_a_score_that_was_knocked_out_stays_masked(host: Host, operation: oracle.Operation) -> None:
    site = Site("ATTENTION_SCORES", (2,), (1, 2), (-1, 4))
    check_plan(host, [[Edit(site, oracle.Knockout((0, 3))), Edit(site, operation)]])


def test_a_query_left_with_no_key_has_no_head_output(host: Host) -> None:
    plan = [[Edit(Site("ATTENTION_SCORES", (2,), (1,), (-1,)), oracle.Knockout())]]
    request = wire.intervene(IDS, plan, TARGETS, activations=[pb.Site(component=pb.COMPONENT_HEAD_OUT, layers=[2])])
    answer = host.intervene(request)
    assert not answer.activations[0, 0, 2][-1, 1].any()
    assert answer.activations[-1, 0, 2][-1, 1].any()
    zeroed = [[Edit(Site("HEAD_OUT", (2,), (1,), (-1,)), oracle.Scale(0.0))]]
    expected = host.intervene(wire.intervene(IDS, zeroed, TARGETS))
    assert_close(answer.columns["log_probabilities"], expected.columns["log_probabilities"])


def test_a_knockout_of_what_is_masked_anyway_changes_nothing(host: Host) -> None:
    answer = check_plan(host, [[Edit(Site("ATTENTION_SCORES", (0, 1), positions=(2,)), oracle.Knockout((4, 5, -1)))]])
    assert_close(answer.columns["edit_norms"], [[0.0]])
    assert_close(answer.columns["log_probabilities"][0], answer.context.clean.log_probabilities)


@pytest.mark.parametrize("kind", ["scale", "set", "add", "multiply", "project_out"])
@pytest.mark.parametrize("start", [0, 4])
def test_from_a_position_on(host: Host, kind: str, start: int) -> None:
    values = np.random.RandomState(0).randn(host.oracle.hidden_size).astype(np.float32)
    operations: dict[str, oracle.Operation] = {
        "scale": oracle.Scale(0.5),
        "set": oracle.Set(values),
        "add": oracle.Add(values),
        "multiply": oracle.Multiply(values),
        "project_out": oracle.ProjectOut(values),
    }
    edit = Edit(Site("RESIDUAL_PRE", (2,), from_position=start), operations[kind])
    answer = check_plan(host, [[edit]])
    assert (answer.columns["edit_norms"] > 0).all()


def test_from_a_position_beyond_the_prompt_on(host: Host) -> None:
    """It waits for generated tokens; the prompt is as it was."""
    answer = check_plan(host, [[Edit(Site("RESIDUAL_PRE", (2,), from_position=len(IDS) + 3), oracle.Scale(0.5))]])
    assert not answer.columns["edit_norms"].any()


def test_a_mean_over_sources_of_other_lengths_with_paired_positions(host: Host) -> None:
    site = Site("RESIDUAL_POST", (1,), positions=(0, -1))
    check_plan(host, [[Edit(site, oracle.Patch((0, 2), (3, 2)))], [Edit(site, oracle.Patch((2,), (8, 7)))]])


def test_negative_positions_of_a_patch_count_from_the_end_of_each_source(host: Host) -> None:
    """The prompt's last token takes the value of each source's last one, also in a mean over sources of two lengths."""
    site = Site("RESIDUAL_POST", (1,), positions=(-1, 2, -3))
    runs = [[Edit(site, oracle.Patch((2,)))], [Edit(site, oracle.Patch((0, 2)))]]
    check_plan(host, [*runs, [Edit(site, oracle.Patch((0, 2), (-2, 4, -7)))]])
    paired = [Edit(site, oracle.Patch((2,), (len(SOURCES[2]) - 1, 2, len(SOURCES[2]) - 3)))]
    answer = check_plan(host, [runs[0], paired])
    assert (answer.columns["logits"][0] == answer.columns["logits"][1]).all()
    assert (answer.columns["edit_norms"][0] == answer.columns["edit_norms"][1]).all()


def test_a_sweep_over_negative_positions_counts_them_from_the_end_of_the_source(host: Host) -> None:
    for together in (frozenset[str](), frozenset({"POSITION"})):
        sweep = Sweep(Edit(Site("RESIDUAL_POST", (1, 2), positions=(-1, 0, -6)), oracle.Patch((2, 1))), together)
        check_plan(host, sweep)


def test_negative_layers_count_from_the_end(host: Host) -> None:
    """In an edit, in a patch's source, in a readout and along a sweep; the answer has them counted from 0."""
    last = host.oracle.layers - 1
    edits = [Edit(Site("MLP_OUT", (last - 1, last)), oracle.Patch((0,), source_layer=last - 2))]
    request = wire.intervene(IDS, [edits], TARGETS, SOURCES, activations=[wire.site(Site("MLP_OUT", (last,)))])
    edit = request.list.interventions[0].edits[0]
    edit.site.layers[:] = [-2, -1]
    edit.patch.source_layer = -3
    request.readout.activations[0].layers[:] = [-1]
    answer = host.intervene(request)
    run = host.oracle.run(IDS, edits, SOURCES)
    check_readings(host, answer, [run])
    assert {layer for _, _, layer in answer.activations} == {last}
    sweep = Sweep(Edit(Site("HEAD_OUT", (last, 0), (1,)), oracle.Scale(0.0)))
    request = wire.intervene(IDS, sweep, TARGETS)
    request.sweep.edit.site.layers[:] = [-1, -host.oracle.layers]
    answer = host.intervene(request)
    assert list(answer.context.axes.layers) == [last, 0]
    check_readings(host, answer, [host.oracle.run(IDS, run) for run in host.oracle.expand(sweep, len(IDS))])


# ------------------------------------------------------------------ sweeps


@settings(max_examples=25 * EFFORT)
@given(data=st.data())
def test_any_sweep(host: Host, data: st.DataObject) -> None:
    sweep = data.draw(sweeps(bounds(host)))
    answer = check_plan(host, sweep)
    layers, units, positions = host.oracle.axes(sweep, len(IDS))
    axes = answer.context.axes
    assert list(axes.layers) == ([] if "LAYER" in sweep.together else layers)
    assert list(axes.units) == ([] if "UNIT" in sweep.together else units)
    assert list(axes.positions) == ([] if "POSITION" in sweep.together else positions)


@pytest.mark.parametrize("component", ["RESIDUAL_POST", "HEAD_OUT", "KEY", "ATTENTION_PATTERN", "FINAL_NORM"])
def test_empty_axes_are_all_of_them(host: Host, component: str) -> None:
    sweep = Sweep(Edit(Site(component), oracle.Scale(0.0)))
    answer = check_plan(host, sweep)
    layers, units, positions = host.oracle.axes(sweep, len(IDS))
    assert (list(answer.context.axes.layers), list(answer.context.axes.units)) == (layers, units)
    assert list(answer.context.axes.positions) == positions
    runs = max(len(layers), 1) * max(len(units), 1) * len(positions)
    assert len(answer.columns["log_probabilities"]) == runs
    assert answer.context.cost.runs >= runs


def test_a_sweep_pairs_positions_with_those_of_the_source(host: Host) -> None:
    sweep = Sweep(Edit(Site("RESIDUAL_POST", (1, 2), positions=(1, 3, -1)), oracle.Patch((2,), (8, 2, 0))))
    check_plan(host, sweep)


def test_a_sweep_from_a_position_on_takes_positions_together(host: Host) -> None:
    sweep = Sweep(Edit(Site("MLP_OUT", from_position=3), oracle.Scale(0.0)))
    answer = check_plan(host, sweep)
    assert len(answer.columns["log_probabilities"]) == host.oracle.layers


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_a_sweep_edits_a_window_of_layers(host: Host, window: int) -> None:
    site = Site("ATTENTION_SCORES", positions=(-1,))
    sweep = Sweep(Edit(site, oracle.Knockout((0, 1))), frozenset({"UNIT"}), window)
    check_plan(host, sweep)


def test_what_is_made_always_comes_first_in_every_run(host: Host) -> None:
    always = (
        Edit(Site("TOKEN_EMBEDDING", positions=(1, 2)), oracle.Noise(1.0)),
        Edit(Site("MLP_OUT", (0,)), oracle.Scale(0.5)),
    )
    sweep = Sweep(Edit(Site("MLP_OUT"), oracle.Patch((0,))), always=always)
    answer = check_plan(host, sweep)
    assert answer.columns["edit_norms"].shape == (host.oracle.layers * len(IDS), 3)


# ------------------------------------------------------------------ readouts


@settings(max_examples=15 * EFFORT)
@given(data=st.data())
def test_activations_are_read_after_the_edits(host: Host, data: st.DataObject) -> None:
    plan = data.draw(plans(bounds(host)))
    read = [data.draw(sites(bounds(host), from_position=False, least_layers=0)) for _ in range(2)]
    request = wire.intervene(IDS, plan, TARGETS, SOURCES, activations=[wire.site(site) for site in read])
    answer = host.intervene(request)
    runs = {-1: host.oracle.run(IDS)} | {i: host.oracle.run(IDS, run, SOURCES) for i, run in enumerate(plan)}
    seen = set()
    for index, run in runs.items():
        for number, site in enumerate(read):
            for layer in host.oracle.layers_of(site):
                seen.add((index, number, layer))
                expected = host.oracle.activation(run, site, layer, len(IDS))
                assert_close(answer.activations[index, number, layer], expected, f"run {index}, {site}, {layer}")
    assert set(answer.activations) == seen


def test_the_unchanged_run_is_in_the_context(host: Host) -> None:
    answer = host.intervene(wire.intervene(IDS, [[one_edit(host, "MLP_OUT", "scale")]], TARGETS, top_k=4))
    logits = host.oracle.run(IDS).logits[-1]
    clean, expected = answer.context.clean, host.oracle.predict(logits, TARGETS, top_k=4)
    assert_close(clean.log_probabilities, expected.log_probabilities)
    assert_close(clean.logits, expected.logits)
    ids = np.array([token.id for token in clean.top_tokens])
    assert_same_ranking(ids, np.array(clean.top_log_probabilities), logits.log_softmax(-1).numpy())
    assert [token.id for token in answer.context.tokens] == IDS
    assert [token.id for token in answer.context.targets] == [41, 200]
    assert answer.context.position == len(IDS) - 1


def test_without_targets_the_top_prediction_is_measured(host: Host) -> None:
    answer = host.intervene(wire.intervene(IDS, [[one_edit(host, "MLP_OUT", "scale")]], position=2))
    top = host.oracle.top(host.oracle.run(IDS).logits[2])
    assert [token.id for token in answer.context.targets] == top
    assert answer.context.position == 2
    changed = host.oracle.run(IDS, [one_edit(host, "MLP_OUT", "scale")])
    check_readings(host, answer, [changed], [Target(top[0])], position=2)


def test_readouts_not_asked_for_do_not_come(host: Host) -> None:
    answer = host.intervene(wire.intervene(IDS, [[one_edit(host, "MLP_OUT", "scale")]], TARGETS))
    assert set(answer.columns) == {"log_probabilities", "logits", "edit_norms"}
    assert not answer.activations
    assert not answer.context.clean.top_tokens


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize("runs", [1, 4])
def test_a_small_answer_is_one_message(host: Host, runs: int) -> None:
    plan = [[one_edit(host, "NEURON", "scale")]] * runs
    assert host.intervene(wire.intervene(IDS, plan, TARGETS, kl_divergence=True, top_k=5)).messages == 1


def test_a_large_answer_comes_in_slices(gpt2: Host) -> None:
    ids = [(7 * place) % 400 for place in range(60)]
    read = [Site("LOGITS"), Site("RESIDUAL_POST")]
    sweep = Sweep(Edit(Site("NEURON", (1, 3), tuple(range(24)), (-1,)), oracle.Scale(0.0)))
    request = wire.intervene(ids, sweep, TARGETS, activations=[wire.site(site) for site in read])
    answer = gpt2.intervene(request)
    assert sum(answer.sizes) > 6 * MESSAGE_LIMIT
    assert max(answer.sizes) <= MESSAGE_LIMIT + SLACK
    assert answer.progress is not None
    assert answer.progress.done == answer.progress.total > 0
    runs = [gpt2.oracle.run(ids, run) for run in gpt2.oracle.expand(sweep, len(ids))]
    expected = [gpt2.oracle.predict(run.logits[-1], TARGETS).log_probabilities for run in runs]
    assert_close(answer.columns["log_probabilities"], expected)
    assert_close(answer.activations[47, 0, 0], runs[-1].logits)
    assert len(answer.activations) == 49 * (1 + gpt2.oracle.layers)


def test_a_dry_run_says_what_it_would_cost(host: Host) -> None:
    sweep = Sweep(Edit(Site("NEURON", (1,), positions=(-1,)), oracle.Scale(0.0)))
    request = wire.intervene(IDS, sweep, TARGETS)
    request.dry_run = True
    answer = host.intervene(request)
    assert answer.messages == 1
    assert not answer.context.HasField("clean")
    assert not answer.columns
    assert [token.id for token in answer.context.tokens] == IDS
    assert [token.id for token in answer.context.targets] == [41, 200]
    assert len(answer.context.axes.units) == host.oracle.neurons
    cost = answer.context.cost
    assert cost.runs >= host.oracle.neurons
    assert cost.full_token_layers >= host.oracle.neurons * len(IDS) * host.oracle.layers
    assert 0 < cost.token_layers <= cost.full_token_layers
    assert cost.answer_bytes > 0
    request.readout.ClearField("targets")
    assert not host.intervene(request).context.targets


def test_provenance_is_in_every_answer(host: Host) -> None:
    provenance = host.intervene(wire.intervene(IDS, [[one_edit(host, "MLP_OUT", "scale")]])).context.provenance
    assert provenance.data_type == pb.DATA_TYPE_FLOAT32
    assert provenance.device == "cpu"
    assert all((provenance.model, provenance.attention, provenance.server_version))


def test_the_same_request_gives_the_same_bytes(host: Host) -> None:
    sweep = Sweep(Edit(Site("HEAD_OUT", positions=(-1,)), oracle.Noise(0.5)))
    request = wire.intervene(IDS, sweep, TARGETS, kl_divergence=True)
    first, second = (list(host.stub.Intervene(request, timeout=DEADLINE)) for _ in range(2))
    assert [one.readings for one in first] == [one.readings for one in second]
