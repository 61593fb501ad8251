"""Trace against the oracle: the prediction, the lens and its gradients, causal tracing cell by cell, activations."""

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb

from tests.conftest import DEADLINE, EFFORT, Host, Hosts
from tests.support import rome, wire
from tests.support.models import FAMILIES
from tests.support.oracle import COMPONENTS, UNLAYERED, Site, Target
from tests.support.rome import DEFAULT_COMPONENTS, Corruption
from tests.support.strategies import Bounds, sites
from tests.support.tolerance import assert_close, assert_same_ranking

TEXT = "The Eiffel Tower is in the city of"
SUBJECT = "Eiffel Tower"
IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [5, 131, 77, 12, 9, 260, 41]
TARGETS = [Target(41), Target(200, contrast=12)]


def ask(prompt: str | Sequence[int], targets: Sequence[Target] = TARGETS, **fields: Any) -> pb.TraceRequest:
    return pb.TraceRequest(prompt=wire.prompt(prompt), targets=[wire.target(one) for one in targets], **fields)


# ------------------------------------------------------------------ the prediction alone


@pytest.mark.parametrize("position", [None, 0, 3, -2])
def test_the_prediction_alone(host: Host, position: int | None) -> None:
    answer = host.trace(ask(IDS, position=position, top_k=5))
    resolved = (len(IDS) - 1 if position is None else position) % len(IDS)
    logits = host.oracle.run(IDS).logits[resolved]
    clean, expected = answer.context.clean, host.oracle.predict(logits, TARGETS)
    assert answer.messages == 1
    assert answer.context.position == resolved
    assert_close(clean.log_probabilities, expected.log_probabilities)
    assert_close(clean.logits, expected.logits)
    ids = np.array([token.id for token in clean.top_tokens])
    assert_same_ranking(ids, np.array(clean.top_log_probabilities), logits.log_softmax(-1).numpy())


def test_without_targets_the_top_prediction_is_traced(host: Host) -> None:
    answer = host.trace(ask(IDS, []))
    top = host.oracle.top(host.oracle.run(IDS).logits[-1])
    assert [token.id for token in answer.context.targets] == top


@pytest.mark.parametrize("more", [0, 1, 100_000])
def test_the_whole_vocabulary_can_be_asked_for(host: Host, more: int) -> None:
    """More tokens than there are is all of them: a default may be larger than a small vocabulary."""
    size = host.oracle.vocabulary
    clean = host.trace(ask(IDS, top_k=size + more)).context.clean
    assert sorted(token.id for token in clean.top_tokens) == list(range(size))
    lens = host.trace(ask(IDS, top_k=size + more, token_probability=pb.TokenProbability()))
    assert lens.columns["top_token_ids"].shape == (host.oracle.layers + 1, size)
    assert abs(sum(np.exp(np.array(clean.top_log_probabilities, np.float64))) - 1) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_tokenized_as_the_tokenizer_does(hosts: Hosts, family: str) -> None:
    host = hosts[family]
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(TEXT), targets=[pb.Target(text=" Paris")]))
    ids = host.ids(TEXT)
    assert [token.id for token in answer.context.tokens] == ids
    assert [token.text for token in answer.context.tokens][-3:] == [" the", " city", " of"]
    paris = answer.context.targets[0]
    assert host.tokenizer.convert_ids_to_tokens(paris.id) in ("ĠParis", "▁Paris")
    assert paris.text == " Paris"
    expected = host.oracle.predict(host.oracle.run(ids).logits[-1], [Target(paris.id)])
    assert_close(answer.context.clean.log_probabilities, expected.log_probabilities)
    same = host.trace(ask(ids, [Target(paris.id)]))
    assert same.context.targets[0] == paris
    np.testing.assert_array_equal(same.context.clean.log_probabilities, answer.context.clean.log_probabilities)


def test_a_contrast_by_text(host: Host) -> None:
    named = pb.Target(text=" Paris", contrast_text=" Rome")
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(TEXT), targets=[named]))
    paris, rome_ = (host.tokenizer(text, add_special_tokens=False).input_ids[0] for text in (" Paris", " Rome"))
    expected = host.oracle.predict(host.oracle.run(host.ids(TEXT)).logits[-1], [Target(paris, rome_)])
    assert_close(answer.context.clean.log_probabilities, expected.log_probabilities)
    assert_close(answer.context.clean.logits, expected.logits)


# ------------------------------------------------------------------ token probability


@pytest.mark.parametrize("position", [None, 4])
def test_the_logit_lens(host: Host, position: int | None) -> None:
    answer = host.trace(ask(IDS, position=position, top_k=4, token_probability=pb.TokenProbability()))
    read = -1 if position is None else position
    lens = host.oracle.lens(IDS, TARGETS, read)
    columns = answer.columns
    assert_close(columns["log_probabilities"], lens.log_probabilities)
    assert_close(columns["logits"], lens.logits)
    assert_close(columns["kl_divergences"], lens.kl_divergences)
    np.testing.assert_array_equal(columns["ranks"], lens.ranks)
    for depth in range(host.oracle.layers + 1):
        ids, values = columns["top_token_ids"][depth], columns["top_log_probabilities"][depth]
        assert_same_ranking(ids, values, lens.everything[depth], f"depth {depth}")
    assert "gradient_norms" not in columns
    assert_close(columns["log_probabilities"][-1], answer.context.clean.log_probabilities)


@pytest.mark.parametrize("named", [False, True])
def test_the_lens_at_several_positions(host: Host, named: bool) -> None:
    """One for each position, in their order; the gradients, which are of the position that is read, with the first."""
    method = pb.TokenProbability(gradient_norms=True, positions=[-1, 0, 3])
    if named:
        spans = [pb.NamedPositions(part=part) for part in (pb.SPAN_PART_LAST, pb.SPAN_PART_FIRST)]
        method = pb.TokenProbability(gradient_norms=True, named_positions=spans)
    request = ask(IDS, position=4, top_k=4, token_probability=method)
    answers = [message.layers for message in host.stub.Trace(request, timeout=DEADLINE) if message.HasField("layers")]
    positions = [6, 0] if named else [6, 0, 3]
    assert [one.position for one in answers] == positions
    for one in answers:
        lens = host.oracle.lens(IDS, TARGETS, one.position)
        for name in ("log_probabilities", "logits", "kl_divergences"):
            assert_close(wire.array(getattr(one, name)), getattr(lens, name), f"{name} at {one.position}")
        np.testing.assert_array_equal(wire.array(one.ranks), lens.ranks)
        ids, values = wire.array(one.top_token_ids), wire.array(one.top_log_probabilities)
        for depth, everything in enumerate(lens.everything):
            assert_same_ranking(ids[depth], values[depth], everything, f"depth {depth} at {one.position}")
    assert [one.HasField("gradient_norms") for one in answers] == [True] + [False] * (len(positions) - 1)
    assert_close(wire.array(answers[0].gradient_norms), host.oracle.gradient_norms(IDS, TARGETS, 4, "PROBABILITY"))
    alone = host.trace(ask(IDS, position=4, top_k=4, token_probability=pb.TokenProbability(gradient_norms=True)))
    depths = host.oracle.layers + 1
    more = 4 * depths * (3 * len(TARGETS) + 1 + 2 * 4)
    dry = host.trace(ask(IDS, position=4, top_k=4, token_probability=method, dry_run=True)).context.cost
    assert dry.answer_bytes == alone.context.cost.answer_bytes + (len(positions) - 1) * more
    assert dry.token_layers == alone.context.cost.token_layers


@pytest.mark.parametrize("position", [None, 4])
@pytest.mark.parametrize("metric", ["UNSPECIFIED", "LOGIT", "LOG_PROBABILITY", "PROBABILITY"])
def test_gradient_norms(host: Host, metric: str, position: int | None) -> None:
    method = pb.TokenProbability(gradient_norms=True, metric=pb.Metric.Value(f"METRIC_{metric}"))
    answer = host.trace(ask(IDS, position=position, token_probability=method))
    read = -1 if position is None else position
    named = "PROBABILITY" if metric == "UNSPECIFIED" else metric
    expected = host.oracle.gradient_norms(IDS, TARGETS, read, named)
    assert_close(answer.columns["gradient_norms"], expected)
    # A probability near 0 has gradients near 0: a relative comparison is what sees an error there.
    np.testing.assert_allclose(answer.columns["gradient_norms"], expected, rtol=1e-3, atol=1e-9)


# ------------------------------------------------------------------ causal tracing


def check_traced(
    host: Host,
    ids: Sequence[int],
    answer: wire.Answer,
    corruption: Corruption,
    deviation: float,
    *,
    components: Sequence[str] = DEFAULT_COMPONENTS,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    window: int = 10,
    position: int = -1,
    targets: Sequence[Target] = TARGETS,
) -> None:
    """The corrupted run and every cell, against ROME's algorithm."""
    model = host.oracle.model
    layers = list(range(host.oracle.layers)) if layers is None else layers
    positions = list(range(len(ids))) if positions is None else positions
    corrupted = rome.cell(model, ids, corruption, targets, position=position)
    told = answer.corruption
    assert told is not None
    assert list(told.positions) == list(corruption.positions)
    assert_close(told.noise_deviation, deviation)
    assert_close(told.probabilities, corrupted.probabilities.mean(-1))
    assert_close(told.deviations, corrupted.probabilities.std(-1))
    assert_close(told.logits, corrupted.logits.mean(-1))
    assert set(answer.cells) == set(components)
    for component in components:
        expected = rome.grid(
            model, ids, corruption, targets, component, layers, positions, window=window, position=position
        )
        listed = [-1] if component in UNLAYERED else layers
        assert set(answer.cells[component]) == {(at, layer) for at in positions for layer in listed}
        found = {name: answer.grid(component, name, listed, positions) for name in ("probabilities", "deviations")}
        assert_close(found["probabilities"], expected.probabilities.mean(-1), component)
        assert_close(found["deviations"], expected.probabilities.std(-1), component)
        assert_close(answer.grid(component, "logits", listed, positions), expected.logits.mean(-1), component)


def test_causal_tracing_as_rome_computes_it(host: Host) -> None:
    method = pb.CausalTracing(subject_text=SUBJECT)
    answer = host.trace(ask(TEXT, causal_tracing=method))
    ids = host.ids(TEXT)
    subject = [len(ids) - 7, len(ids) - 6]
    corruption, deviation = rome.gaussian(host.oracle.model, subject)
    check_traced(host, ids, answer, corruption, deviation)
    assert all(set(cell) == {"probabilities", "deviations", "logits"} for cell in answer.cells["MLP_OUT"].values())
    assert answer.progress is None or answer.progress.done == answer.progress.total


@settings(max_examples=6 * EFFORT)
@given(data=st.data())
def test_any_causal_trace(host: Host, data: st.DataObject) -> None:
    subject = data.draw(st.lists(st.integers(0, len(IDS) - 1), min_size=1, max_size=3, unique=True).map(sorted))
    samples, seed = data.draw(st.integers(1, 4)), data.draw(st.none() | st.integers(0, 2**32 - 1))
    scale = data.draw(st.sampled_from([("deviations", 1.5), ("deviations", 3.0), ("standard_deviation", 0.25)]))
    window = data.draw(st.integers(1, 2 * host.oracle.layers + 1))
    layers = data.draw(st.lists(st.integers(0, host.oracle.layers - 1), min_size=1, max_size=2, unique=True))
    positions = data.draw(st.lists(st.integers(0, len(IDS) - 1), min_size=1, max_size=3, unique=True))
    components = data.draw(st.lists(st.sampled_from(DEFAULT_COMPONENTS), min_size=1, max_size=2, unique=True))
    read = data.draw(st.none() | st.integers(0, len(IDS) - 1))
    replaced = data.draw(st.booleans())
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=samples, seed=seed, **{scale[0]: scale[1]}),
        replace=replaced,
        subject_positions=pb.PositionList(positions=subject),
        components=[wire.component(name) for name in components],
        window=window,
        layers=layers,
        positions=positions,
    )
    answer = host.trace(ask(IDS, position=read, causal_tracing=method))
    model = host.oracle.model
    seeded = 1 if seed is None else seed
    if scale[0] == "deviations":
        corruption, deviation = rome.gaussian(model, subject, scale[1], samples, seeded)
    else:
        corruption, deviation = rome.gaussian(model, subject, samples=samples, seed=seeded, scale=scale[1])
    corruption = Corruption(corruption.positions, corruption.values, replaced)
    axes: dict[str, Any] = {"layers": layers, "positions": positions}
    where = -1 if read is None else read
    check_traced(host, IDS, answer, corruption, deviation, components=components, window=window, position=where, **axes)


@pytest.mark.parametrize("replaced", [False, True])
def test_noise_of_the_callers_own(host: Host, replaced: bool) -> None:
    noise = np.random.RandomState(7).randn(3, 2, host.oracle.hidden_size).astype(np.float32)
    subject = pb.PositionList(positions=[1, -3])
    method = pb.CausalTracing(noise=wire.tensor(noise), subject_positions=subject, replace=replaced)
    answer = host.trace(ask(IDS, causal_tracing=method))
    check_traced(host, IDS, answer, Corruption((1, 4), noise, replaced), 0.0)


def test_replaying_the_gaussian_as_a_tensor_is_the_same(host: Host) -> None:
    corruption, _ = rome.gaussian(host.oracle.model, [1, 2], samples=4, seed=9)
    subject = pb.PositionList(positions=[1, 2])
    drawn = pb.CausalTracing(gaussian=pb.CausalTracing.Gaussian(samples=4, seed=9), subject_positions=subject)
    given_ = pb.CausalTracing(noise=wire.tensor(corruption.values), subject_positions=subject)
    first, second = (host.trace(ask(IDS, causal_tracing=method)) for method in (drawn, given_))
    axes = range(host.oracle.layers), range(len(IDS))
    for component in DEFAULT_COMPONENTS:
        assert_close(first.grid(component, "probabilities", *axes), second.grid(component, "probabilities", *axes))


def test_a_counterfactual_prompt(host: Host) -> None:
    method = pb.CausalTracing(counterfactual=wire.prompt(OTHER), window=3)
    answer = host.trace(ask(IDS, causal_tracing=method))
    corruption = rome.counterfactual(host.oracle.model, IDS, OTHER)
    assert corruption.positions == (1, 3)
    check_traced(host, IDS, answer, corruption, 0.0, window=3)
    assert answer.corruption is not None
    other = host.oracle.predict(host.oracle.run(OTHER).logits[-1], TARGETS)
    assert_close(answer.corruption.probabilities, np.exp(other.log_probabilities))
    assert not any(answer.corruption.deviations)


@pytest.mark.parametrize("component", COMPONENTS)
def test_any_component_can_be_restored(host: Host, component: str) -> None:
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=3),
        subject_positions=pb.PositionList(positions=[2, 3]),
        components=[wire.component(component)],
        window=3,
    )
    answer = host.trace(ask(IDS, causal_tracing=method))
    corruption, deviation = rome.gaussian(host.oracle.model, [2, 3], samples=3)
    check_traced(host, IDS, answer, corruption, deviation, components=[component], window=3)


def test_every_sample_where_asked_for(host: Host) -> None:
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=4),
        subject_positions=pb.PositionList(positions=[2]),
        components=[pb.COMPONENT_RESIDUAL_POST],
        per_sample=True,
    )
    answer = host.trace(ask(IDS, causal_tracing=method))
    corruption, _ = rome.gaussian(host.oracle.model, [2], samples=4)
    layers, positions = range(host.oracle.layers), range(len(IDS))
    expected = rome.grid(host.oracle.model, IDS, corruption, TARGETS, "RESIDUAL_POST", layers, positions)
    assert_close(answer.grid("RESIDUAL_POST", "sample_probabilities", layers, positions), expected.probabilities)
    assert answer.corruption is not None
    corrupted = rome.cell(host.oracle.model, IDS, corruption, TARGETS).probabilities
    assert_close(wire.array(answer.corruption.sample_probabilities), corrupted)


def test_negative_positions_and_layers_are_resolved(host: Host) -> None:
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=2),
        subject_positions=pb.PositionList(positions=[-4]),
        positions=[-1, 2],
        layers=[-1, 1],
    )
    answer = host.trace(ask(IDS, causal_tracing=method))
    corruption, deviation = rome.gaussian(host.oracle.model, [3], samples=2)
    layers = [host.oracle.layers - 1, 1]
    check_traced(host, IDS, answer, corruption, deviation, layers=layers, positions=[6, 2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (TEXT, "The Eiffel Tower"),
        (TEXT, "Tower"),
        (TEXT, " Eiffel Tower"),
        (TEXT, "Eiffel Tower "),
        ("Tom met Tom and Mary", "Tom"),
        ("Tom and Tom left", " Tom "),
        ("In São Paulo it is", "São"),
        ("a 🙂 in Zürich", "🙂"),
        ("a  \n b", "\n"),
    ],
)
def test_the_subject_is_every_token_of_its_first_occurrence(hosts: Hosts, family: str, text: str, subject: str) -> None:
    host = hosts[family]
    whole = subject.strip() or subject
    start = text.index(whole)
    end = start + len(whole)
    offsets = host.tokenizer(text, return_offsets_mapping=True).offset_mapping
    expected = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    method = pb.CausalTracing(
        gaussian=pb.CausalTracing.Gaussian(samples=1), subject_text=subject, layers=[0], positions=[0]
    )
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(text), causal_tracing=method))
    assert answer.corruption is not None
    assert list(answer.corruption.positions) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("subject", "cut"),
    [("Towe", [3]), ("ower", [3]), ("iffel Tower", [2]), ("Eiffel T", [3]), ("wer is i", [3, 5])],
)
def test_a_subject_that_takes_a_part_of_a_token_is_refused(
    hosts: Hosts, family: str, subject: str, cut: list[int]
) -> None:
    host = hosts[family]
    first = len(host.ids(TEXT)) - 8
    request = pb.TraceRequest(prompt=wire.prompt(TEXT), causal_tracing=pb.CausalTracing(subject_text=subject))
    refused = wire.refusal(host.stub.Trace(request, timeout=DEADLINE))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    told = refused.violations["causal_tracing.subject_text"]
    words = TEXT.split()
    for number in cut:
        assert f"' {words[number - 1]}' (position {first + number - 1})" in told
    assert told.count("(position") == len(cut)
    assert told.startswith(f"{subject!r} does not cover whole tokens: it takes only part of ")


def test_a_dry_run_of_a_trace(host: Host) -> None:
    method = pb.CausalTracing(subject_text=SUBJECT)
    answer = host.trace(ask(TEXT, [], causal_tracing=method, dry_run=True))
    cells = 3 * host.oracle.layers * len(host.ids(TEXT))
    assert answer.messages == 1
    assert not answer.context.HasField("clean")
    assert not answer.context.targets
    assert not answer.cells
    assert answer.corruption is not None
    assert list(answer.corruption.positions) == list(
        host.trace(ask(TEXT, [], causal_tracing=method)).corruption.positions
    )
    assert not answer.corruption.probabilities
    assert answer.context.cost.runs >= cells
    assert answer.context.cost.answer_bytes > 0


# ------------------------------------------------------------------ activations


def activations(host: Host, wanted: Sequence[Site]) -> wire.Answer:
    return host.trace(ask(IDS, activations=pb.Activations(sites=[wire.site(one) for one in wanted])))


def test_every_activation_of_every_layer(host: Host) -> None:
    wanted = [Site(component) for component in COMPONENTS]
    answer, run = activations(host, wanted), host.oracle.run(IDS)
    for index, site in enumerate(wanted):
        for layer in host.oracle.layers_of(site):
            value = answer.activations[-1, index, layer]
            assert_close(value, run.values[site.component, layer].numpy(), f"{site.component} {layer}")
    assert len(answer.activations) == len(run.values)


@settings(max_examples=12 * EFFORT)
@given(data=st.data())
def test_any_part_of_an_activation(host: Host, data: st.DataObject) -> None:
    bounds = Bounds(host.oracle, len(IDS), (), ())
    wanted = [data.draw(sites(bounds, from_position=False, least_layers=0)) for _ in range(2)]
    answer, run = activations(host, wanted), host.oracle.run(IDS)
    for index, site in enumerate(wanted):
        for layer in host.oracle.layers_of(site):
            expected = host.oracle.activation(run, site, layer, len(IDS))
            assert_close(answer.activations[-1, index, layer], expected, f"{site}, layer {layer}")
