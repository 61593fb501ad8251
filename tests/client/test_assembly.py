"""Streams joined field by field, in whatever slices they come."""

import itertools
from typing import Any

import numpy as np
import pytest
import sonde
from hypothesis import given
from hypothesis import strategies as st
from sonde._methods.interventions import InterveneAssembler, intervene_request
from sonde._methods.trace import TraceAssembler, trace_request
from sonde._wire.tensors import to_tensor
from sonde.v1 import inspection_pb2 as pb

EDIT = sonde.scale(sonde.neuron(), 0.0)


def intervene(plan: Any, messages: Any, *, activations: Any = (), **options: Any) -> sonde.InterventionResult:
    assembler = assembler_of(plan, activations=activations, **options)
    for message in messages:
        assembler.feed(message)
    return assembler.result()


def assembler_of(plan: Any, *, activations: Any = (), **options: Any) -> InterveneAssembler:
    given = {
        "targets": None,
        "sources": (),
        "position": None,
        "top_k": 0,
        "kl_divergence": False,
        "generation": None,
        "dry_run": False,
    } | options
    return InterveneAssembler(intervene_request("x", plan, activations=activations, **given), activations)


def trace(method: Any, messages: Any, *, dry_run: bool = False) -> Any:
    request = trace_request("x", method, targets=None, position=None, top_k=2, dry_run=dry_run)
    assembler = TraceAssembler(request, method)
    for message in messages:
        assembler.feed(message)
    return assembler.result()


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 3), st.randoms())
def test_slices_of_runs_join_in_any_order(counts: list[int], targets: int, random: Any) -> None:
    answers = make_answers()
    runs = sum(counts)
    values = np.arange(runs * targets, dtype=np.float32).reshape(runs, targets)
    starts = np.cumsum([0, *counts])
    slices = [(int(a), int(b)) for a, b in itertools.pairwise(starts)]
    random.shuffle(slices)
    context = answers.context(*[answers.PARIS] * targets)
    messages = [pb.InterveneResponse(context=context)]
    messages += [
        pb.InterveneResponse(
            readings=answers.readings(a, values[a:b], top_token_ids=answers.tensor(values[a:b], "int32"))
        )
        for a, b in slices
    ]
    result = intervene([EDIT] * runs, messages)
    assert np.array_equal(result.log_probabilities, values)
    assert np.array_equal(result.logits, 2 * values)
    assert np.array_equal(result.top_token_ids, values)
    assert list(result.axes) == ["run", "target"]


def make_answers() -> Any:
    return ANSWERS["answers"]


ANSWERS: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _answers(answers: Any) -> None:
    ANSWERS["answers"] = answers


def test_a_sweep_has_four_axes_with_the_last_fastest(answers: Any) -> None:
    axes = pb.Axes(layers=[2, 5], units=[0, 1, 2], positions=[6, 7])
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    context = answers.context(answers.PARIS, answers.ROME, axes=axes)
    message = pb.InterveneResponse(context=context, readings=answers.readings(0, values))
    result = intervene(sonde.sweep(EDIT), [message])
    assert dict(result.axes) == {
        "layer": (2, 5),
        "unit": (0, 1, 2),
        "position": (6, 7),
        "target": (" Paris", " Rome"),
    }
    assert result.log_probabilities.shape == (2, 3, 2, 2)
    assert result.log_probabilities[1, 2, 0, 1] == values[1 * 6 + 2 * 2 + 0, 1]
    assert np.array_equal(result[1, 2, 0].log_probabilities, values[10])
    assert len(result) == 12
    change = result.most_changed(1, target=1)[0]
    assert (change.run, change.layer, change.unit, change.position) == (11, 5, 2, 7)
    assert change.effect == pytest.approx(23 - float(result.clean.log_probabilities[1]))
    assert change.target == " Rome"


@pytest.mark.parametrize(
    ("plan", "axes", "labels"),
    [
        (sonde.sweep(EDIT, together="unit"), ([0, 1], [0, 1, 2], [4]), ((0, 1), ("0-2",), (4,))),
        (sonde.sweep(EDIT, together=["layer", "position"]), ([1, 3], [0, 1], []), (("1,3",), (0, 1), ("all",))),
        (sonde.sweep(sonde.scale(sonde.residual(), 0.0)), ([0], [], [0, 1]), ((0,), ("all",), (0, 1))),
        (sonde.sweep(EDIT, positions=[2, 4], together="position"), ([0], [1], []), ((0,), (1,), ("2,4",))),
        (
            sonde.sweep(sonde.scale(sonde.residual(from_position=3), 0.0)),
            ([0, 1], [], [3, 4, 5]),
            ((0, 1), ("all",), ("3:",)),
        ),
    ],
)
def test_an_axis_taken_together_has_one_entry(answers: Any, plan: Any, axes: Any, labels: Any) -> None:
    runs = int(np.prod([len(axis) for axis in labels]))
    context = answers.context(axes=pb.Axes(layers=axes[0], units=axes[1], positions=axes[2]))
    readings = answers.readings(0, np.zeros((runs, 1)))
    result = intervene(plan, [pb.InterveneResponse(context=context, readings=readings)])
    assert tuple(result.axes.values())[:3] == labels
    assert result.log_probabilities.shape[:3] == tuple(map(len, labels))


def test_everything_that_a_run_can_say(answers: Any) -> None:
    readings = answers.readings(
        0,
        [[-1.0], [-2.0]],
        kl_divergences=answers.tensor([0.5, 0.25]),
        edit_norms=answers.tensor([[1.0, 2.0], [3.0, 0.0]]),
        top_token_ids=answers.tensor([[7, 9], [9, 7]], "int32"),
        top_log_probabilities=answers.tensor(np.log([[0.5, 0.25], [0.75, 0.125]])),
    )
    readings.token_texts[9] = " Lyon"
    result = intervene([EDIT, [EDIT, EDIT]], [pb.InterveneResponse(context=answers.context(), readings=readings)])
    assert [(t.text, round(t.probability, 5)) for t in result.top(2)] == [(" Paris", 0.5), (" Lyon", 0.25)]
    assert [t.text for t in result.top(1, run=1)] == [" Lyon"]
    assert result.kl_divergences is not None
    assert result.kl_divergences.tolist() == [0.5, 0.25]
    assert result.most_changed(1, by="kl_divergence")[0].run == 0
    assert result[1].edit_norms.tolist() == [3.0, 0.0]
    assert result[-1].kl_divergence == 0.25
    assert [run.effect.shape for run in result] == [(1,), (1,)]
    frame = result.to_dataframe()
    assert list(frame["run"]) == [0, 1]
    assert list(frame["kl_divergence"]) == [0.5, 0.25]
    with pytest.raises(ValueError, match="top_k=3"):
        result.top(3)
    with pytest.raises(IndexError):
        result[2]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_stream_cut_short_is_an_error(answers: Any, count: int) -> None:
    messages = [
        pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]])),
        pb.InterveneResponse(readings=answers.readings(1, [[-2.0]])),
    ]
    with pytest.raises(sonde.ProtocolError, match="ended early"):
        intervene([EDIT] * 3, messages[:count])


def test_partial_results_are_nan_where_nothing_has_come(answers: Any) -> None:
    assembler = assembler_of([EDIT] * 3)
    assert assembler.partial() is None
    assembler.feed(pb.InterveneResponse(context=answers.context(), readings=answers.readings(1, [[-1.0]])))
    partial = assembler.partial()
    assert partial is not None
    assert not partial.complete
    assert partial.arrived.tolist() == [False, True, False]
    assert np.isnan(partial.log_probabilities[[0, 2]]).all()
    assert [change.run for change in partial.most_changed(3)] == [1]


@pytest.mark.parametrize("fault", ["no context", "two contexts", "beyond", "count", "width", "no clean", "no token"])
def test_answers_that_break_the_contract_are_refused(answers: Any, fault: str) -> None:
    context, good = answers.context(), answers.readings(0, [[-1.0]])
    narrow = answers.readings(0, [[-1.0]])
    narrow.logits.CopyFrom(answers.tensor([[1.0, 2.0]]))
    wrong = answers.readings(0, [[-1.0]])
    wrong.count = 2
    lacking = answers.context()
    del lacking.clean.logits[:]
    messages = {
        "no context": [pb.InterveneResponse(readings=good)],
        "two contexts": [pb.InterveneResponse(context=context), pb.InterveneResponse(context=context)],
        "beyond": [pb.InterveneResponse(context=context, readings=answers.readings(2, [[-1.0]]))],
        "count": [pb.InterveneResponse(context=context, readings=wrong)],
        "width": [pb.InterveneResponse(context=context, readings=narrow)],
        "no clean": [pb.InterveneResponse(context=answers.context(clean=False), readings=good)],
        "no token": [pb.InterveneResponse(context=lacking, readings=good)],
    }[fault]
    with pytest.raises(sonde.ProtocolError):
        intervene([EDIT, EDIT], messages)


def test_a_dry_run_has_a_cost_and_no_predictions(answers: Any) -> None:
    axes = pb.Axes(layers=[0, 1], units=[0], positions=[1])
    context = answers.context(axes=axes, clean=False)
    result = intervene(sonde.sweep(EDIT), [pb.InterveneResponse(context=context)], dry_run=True)
    assert result.cost.full_token_layers == 160
    assert result.axes["layer"] == (0, 1)
    with pytest.raises(ValueError, match="dry run"):
        result.clean  # noqa: B018
    for method in (None, sonde.CausalTracing(subject="a"), sonde.TokenProbability()):
        dry = trace(method, [pb.TraceResponse(context=answers.context(clean=False))], dry_run=True)
        assert "dry run" in repr(dry)


@given(st.data())
def test_activations_join_from_slices(data: st.DataObject) -> None:
    answers = make_answers()
    sites = (sonde.residual(layer=[3, 1]), sonde.site("logits"))
    arrays = {
        (run, site, layer): np.arange(12, dtype=np.float32) + 100 * run + 10 * site + layer
        for run in (-1, 0)
        for site, layer in ((0, 1), (0, 3), (1, 0))
    }
    slices = []
    for (run, site, layer), flat in arrays.items():
        cuts = sorted({0, 12, *data.draw(st.lists(st.integers(1, 11), max_size=3))})
        for a, b in itertools.pairwise(cuts):
            values = to_tensor(flat[a:b], "x")
            slices.append(pb.ActivationSlice(run=run, site=site, layer=layer, shape=[3, 4], offset=a, values=values))
    lacking = data.draw(st.booleans())
    dropped = slices.pop(data.draw(st.integers(0, len(slices) - 1))) if lacking else None
    messages = [pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]]))]
    messages += [pb.InterveneResponse(activations=[part]) for part in data.draw(st.permutations(slices))]
    if dropped is not None:
        with pytest.raises(sonde.ProtocolError, match="activations of run"):
            intervene([EDIT], messages, activations=sites)
        return
    result = intervene([EDIT], messages, activations=sites)
    for run, captured in ((-1, result.clean.activations), (0, result[0].activations)):
        assert np.array_equal(captured["residual_post"][0], arrays[run, 0, 3].reshape(3, 4))
        assert np.array_equal(captured[0][1], arrays[run, 0, 1].reshape(3, 4))
        assert np.array_equal(captured["logits"], arrays[run, 1, 0].reshape(3, 4))
        assert captured.axes(0)["layer"] == (3, 1)
        assert list(captured.axes("logits")) == ["position", "token"]


def test_activations_outside_their_shape_are_refused(answers: Any) -> None:
    part = pb.ActivationSlice(run=-1, site=0, shape=[2], offset=1, values=answers.tensor([1.0, 2.0]))
    with pytest.raises(sonde.ProtocolError, match="outside site 0"):
        trace(
            sonde.Activations(sonde.site("logits")), [pb.TraceResponse(context=answers.context(), activations=[part])]
        )


def test_generated_tokens_join(answers: Any) -> None:
    def part(run: int, offset: int, text: str, reason: Any = 0) -> pb.Generated:
        return pb.Generated(
            run=run, offset=offset, tokens=[pb.Token(id=offset, text=text)], text=text, finish_reason=reason
        )

    first = pb.InterveneResponse(context=answers.context(), readings=answers.readings(0, [[-1.0]]))
    parts = [part(-1, 0, " a"), part(0, 0, " b"), part(-1, 1, " c", pb.Generated.FINISH_REASON_END_TOKEN)]
    messages = [first, pb.InterveneResponse(generated=parts)]
    with pytest.raises(sonde.ProtocolError, match="run 0"):
        intervene([EDIT], messages, generation=sonde.Generation(2))
    end = pb.Generated(run=0, offset=1, finish_reason=pb.Generated.FINISH_REASON_LENGTH)
    result = intervene([EDIT], [*messages, pb.InterveneResponse(generated=[end])], generation=sonde.Generation(2))
    said = result.clean.continuation
    assert said is not None
    assert (said.text, said.finish_reason, [t.id for t in said.tokens]) == (" a c", "end_token", [0, 1])
    assert [str(text) for text in result.generated] == [" b"]


def test_causal_grids_join(answers: Any) -> None:
    result = trace(sonde.CausalTracing(subject="The Eiffel Tower"), answers.causal(12))
    assert list(result.restored) == ["residual_post", "mlp_out", "attention_out"]
    for name, part in ((n, [m.grids for m in answers.causal(12) if m.grids]) for n in result.restored):
        assert result.restored[name].shape == (8, 12, 1)
        assert result.axes[name]["layer"] == tuple(range(12))
        assert len(part) == 6
    cell = next(m.grids[0] for m in answers.causal(12) if m.grids)
    sent = np.frombuffer(cell.probabilities.data, "<f4").reshape(8, 6, 1)
    assert np.array_equal(result.restored["residual_post"][:, 6:], sent)
    assert np.allclose(result.effect["residual_post"][:, 6:], sent - np.float32(0.03))
    assert np.allclose(result.deviations["residual_post"][:, 6:], sent / 10)
    assert result.clean.tolist() == pytest.approx([0.9])
    assert result.corrupted.tolist() == pytest.approx([0.03])
    best = result.strongest(2)
    assert [(cell.component, cell.token, cell.layer) for cell in best] == [
        ("residual_post", " of", 11),
        ("residual_post", " Tower", 3),
    ]
    frame = result.to_dataframe()
    assert len(frame) == 3 * 8 * 12
    row = frame[(frame.component == "mlp_out") & (frame.position == 2) & (frame.layer == 3)].iloc[0]
    assert row.probability == pytest.approx(float(result.restored["mlp_out"][2, 3, 0]))
    assert row["token"] == " Tower"  # noqa: S105 - a word


def test_a_grid_with_a_hole_is_an_error(answers: Any) -> None:
    messages = answers.causal(12)
    for lacking in range(1, len(messages)):
        if lacking % 2:  # The lower half of the layers would be contiguous, and so is not noticed.
            with pytest.raises(sonde.ProtocolError):
                trace(sonde.CausalTracing(subject="a", layers=range(12)), messages[:lacking] + messages[lacking + 1 :])
    with pytest.raises(sonde.ProtocolError, match="ended early"):
        trace(sonde.CausalTracing(subject="a", components=["query"]), messages)
    with pytest.raises(sonde.ProtocolError, match="ended early"):
        trace(sonde.CausalTracing(subject="a"), messages[:1])


def test_a_grid_follows_the_order_asked_for(answers: Any) -> None:
    values = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    filled = answers.tensor(values)
    grid = pb.RestorationGrid(
        component=pb.COMPONENT_MLP_OUT,
        positions=[0, 7],
        layers=[1, 3],
        probabilities=filled,
        deviations=filled,
        logits=filled,
    )
    corruption = pb.Corruption(probabilities=[0.0], deviations=[0.0], logits=[0.0])
    message = pb.TraceResponse(context=answers.context(), corruption=corruption, grids=[grid])
    method = sonde.CausalTracing(subject="a", components="mlp_out", layers=[3, 1], positions=[-1, 0])
    result = trace(method, [message])
    assert result.axes["mlp_out"]["position"] == (7, 0)
    assert result.restored["mlp_out"][..., 0].tolist() == [[3.0, 2.0], [1.0, 0.0]]


def test_a_component_without_layers_has_a_layer_axis_of_one(answers: Any) -> None:
    filled = answers.tensor(np.zeros((8, 1, 1)))
    grid = pb.RestorationGrid(
        component=pb.COMPONENT_TOKEN_EMBEDDING,
        positions=range(8),
        probabilities=filled,
        deviations=filled,
        logits=filled,
    )
    corruption = pb.Corruption(probabilities=[0.0], deviations=[0.0], logits=[0.0])
    message = pb.TraceResponse(context=answers.context(), corruption=corruption, grids=[grid])
    result = trace(sonde.CausalTracing(subject="a", components="token_embedding"), [message])
    assert result.axes["token_embedding"]["layer"] == (None,)


def test_layers_join_and_iterate_as_pairs(answers: Any) -> None:
    result = trace(sonde.TokenProbability(gradient_norms=True), [answers.lens(4)])
    assert result.depths == (0, 1, 2, 3, 4)
    pairs = list(result)
    assert [round(p, 4) for p, _ in pairs] == [0.2625, 0.475, 0.6875, 0.9]
    assert [norms.shape for _, norms in pairs] == [(8,)] * 4
    assert pairs[0][1].tolist() == list(range(8, 16))
    assert result.probability == pytest.approx(0.9)
    assert [t.text for t in result.top_at(2, 2)] == [" Paris", " Rome"]
    assert result.ranks[:, 0].tolist() == [4, 3, 2, 1, 0]
    assert list(result.to_dataframe()["depth"]) == [0, 1, 2, 3, 4]


def test_gradient_norms_that_were_asked_for_must_come(answers: Any) -> None:
    without = answers.lens(4, gradients=False)
    with pytest.raises(sonde.ProtocolError, match="gradient_norms"):
        trace(sonde.TokenProbability(gradient_norms=True), [without])
    assert [norms for _, norms in trace(sonde.TokenProbability(), [without])] == [None] * 4


def test_attributions_join(answers: Any) -> None:
    values = np.arange(2 * 8 * 3, dtype=np.float32).reshape(2, 8, 3, 1)
    parts = [
        pb.Attributions(
            component=pb.COMPONENT_HEAD_OUT,
            layers=[layer],
            positions=range(8),
            estimates=answers.tensor(values[[layer]]),
        )
        for layer in (1, 0)
    ]
    verified = pb.VerifiedEffect(
        site=pb.Site(component=pb.COMPONENT_HEAD_OUT, layers=[1], units=[2], positions=[3]),
        estimated=[1.0],
        measured=[0.5],
    )
    message = pb.TraceResponse(context=answers.context(), attributions=parts, verified=[verified])
    result = trace(sonde.AttributionPatching("other", "head_out", verify_top=1), [message])
    assert np.array_equal(result.estimates["head_out"], values)
    assert list(result.axes["head_out"]) == ["layer", "position", "unit", "target"]
    assert result.verified[0].site == sonde.head(layer=1, unit=2, position=3)
    assert len(result.to_dataframe()) == 48
    (first, *_) = result.strongest(1)
    assert (first.layer, first.position, first.unit, first.estimate) == (1, 7, 2, 47.0)
    assert np.isnan(result.rank_correlation())


def edges_from(answers: Any, offset: int, estimates: list[float]) -> pb.EdgeAttributions:
    count = len(estimates)
    return pb.EdgeAttributions(
        offset=offset,
        senders=answers.tensor(np.tile([pb.COMPONENT_HEAD_OUT, 2, 1], (count, 1)), "int32"),
        receivers=answers.tensor(np.tile([pb.COMPONENT_LOGITS, 0, 0], (count, 1)), "int32"),
        estimates=answers.tensor(np.array(estimates)[:, None]),
    )


def test_edges_join(answers: Any) -> None:
    method = sonde.AttributionPatching("other", edges=3)
    parts = [edges_from(answers, 2, [0.5]), edges_from(answers, 0, [-2.0, 1.0])]
    result = trace(method, [pb.TraceResponse(context=answers.context(), edges=parts)])
    assert [float(edge.estimates[0]) for edge in result.edges] == [-2.0, 1.0, 0.5]
    assert str(result.edges[0]) == "head out 2.1 → logits"
    assert (result.edges[0].receiver.layer, result.edges[0].sender.head) == (None, 1)
    assert len(result.edges[1:]) == 2
    assert result.edges.to_dataframe()["sender_layer"].tolist() == [2, 2, 2]
    assert "3 edges" in repr(result)
    with pytest.raises(sonde.ProtocolError, match="follow"):
        trace(method, [pb.TraceResponse(context=answers.context(), edges=parts[:1])])
    with pytest.raises(sonde.ProtocolError, match="edges"):
        trace(method, [pb.TraceResponse(context=answers.context())])


def test_ranks_of_estimates_and_measurements(answers: Any) -> None:
    def verified(estimated: float, measured: float) -> pb.VerifiedEffect:
        site = pb.Site(component=pb.COMPONENT_FINAL_NORM, positions=[3])
        return pb.VerifiedEffect(site=site, estimated=[estimated], measured=[measured])

    part = pb.Attributions(
        component=pb.COMPONENT_FINAL_NORM, positions=range(8), estimates=answers.tensor(np.zeros((1, 8, 1)))
    )
    effects = [verified(5.0, 0.1), verified(4.0, 0.3), verified(-3.0, 0.3), verified(-9.0, -0.2)]
    message = pb.TraceResponse(context=answers.context(), attributions=[part], verified=effects)
    result = trace(sonde.AttributionPatching("other", "final_norm", verify_top=4), [message])
    # Ranks 4, 3, 2, 1 and 2, 3.5, 3.5, 1: Pearson's correlation of these.
    assert result.rank_correlation() == pytest.approx(np.corrcoef([4, 3, 2, 1], [2, 3.5, 3.5, 1])[0, 1])
    sizes = trace(sonde.AttributionPatching("other", "final_norm", verify_top=4, drop_layers=True), [message])
    assert sizes.rank_correlation() == pytest.approx(np.corrcoef([4, 3, 2, 1], [1, 3.5, 3.5, 2])[0, 1])
