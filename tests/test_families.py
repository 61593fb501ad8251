"""Every architecture over the wire, against the oracle and against plain transformers.

The whole suite runs on GPT-2 and Llama. Here every other family, in each of its variants, is asked the same kinds of
questions once: every component edited and read, a sweep, a causal trace, the lens, gradients, attributions,
generation, prompts of several lengths at once.

The engine knows of an architecture what its `Family` says. So all questions are asked of the variants of COVERING,
among which every field of `Family` takes every kind of value that it has anywhere, and of every variant those that find
a wrong entry. The other questions of the other variants are marked `full`.
"""

import dataclasses
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
import torch
from sonde.v1 import inspection_pb2 as pb
from sonde_server.model.families import family_of
from sonde_server.model.families.family import Family

from tests.conftest import DEADLINE, Host, Hosts
from tests.support import attribution_oracle as plain
from tests.support import oracle, rome, wire
from tests.support.architectures import ARCHITECTURES
from tests.support.generating import continued_logits
from tests.support.oracle import COMPONENTS, UNIT_FIRST, UNLAYERED, Edit, Site, Sweep, Target
from tests.support.tolerance import assert_close, assert_near

IDS = [5, 130, 77, 301, 9, 260, 41]
SOURCES = [[8, 131, 70, 12, 299, 261, 40], [17, 18, 250, 305, 61, 2, 99, 101, 307]]
LONGER = [17, 18, 250, 305, 61, 2, 99, 101, 307, 44, 46]
TARGETS = [Target(41), Target(200, contrast=12)]
LAYER = 1

COVERING = (
    "apertus",
    "bloom",
    "cohere2",
    "falcon",
    "falcon-alibi",
    "gemma2",
    "glm",
    "gpt_bigcode",
    "gpt_oss",
    "gptj",
    "granitemoe",
    "hunyuan_v1_dense-stretched",
    "mistral",
    "olmo-clamped",
    "olmo3",
    "olmoe",
    "opt",
    # Its positions are turned by the length of the prompt: refused where a text goes on, by what is no field of Family.
    "phi3-longrope",
)
"""The variants that everything is asked of."""

Test = TypeVar("Test", bound=Callable[..., None])


def of_every_variant(test: Test) -> Test:
    """Marks a test that finds a wrong entry, so that it is run on every variant."""
    test.of_every_variant = True  # type: ignore[attr-defined]
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test on every variant; on those that are not in COVERING it is marked `full`, unless it finds entries."""
    if "host" in metafunc.fixturenames:
        everywhere = hasattr(metafunc.function, "of_every_variant")
        variants = [
            name if everywhere or name in COVERING else pytest.param(name, marks=pytest.mark.full)
            for name in ARCHITECTURES
        ]
        metafunc.parametrize("host", variants, indirect=True, scope="module")


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A server of its own for each architecture, gone when the next one comes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        hosts = Hosts(Path(directory))
        with hosts.stack:
            yield hosts[request.param]


def kind(value: Any) -> object:
    """What kind of value a field of an entry has: what another code path or another mistake would belong to.

    Of a function that is which one it is, and the kinds of what it was made from.
    """
    if value in (None, 0, 1):
        # Those that leave out what the field is for, and both booleans.
        return value
    if isinstance(value, str | int | float):
        return "any other"
    if isinstance(value, Mapping):
        return frozenset(value)
    if isinstance(value, Sequence):
        return "several", frozenset(kind(one) for one in value)
    if inspect.isfunction(value):
        return (value.__qualname__, *(kind(cell.cell_contents) for cell in value.__closure__ or ()))
    return type(value)


def test_everything_is_asked_of_every_kind_of_entry() -> None:
    covered, missing = set(), {}
    entries = {name: family_of(make(420)) for name, make in ARCHITECTURES.items()}
    for name in (*COVERING, *entries):
        # What an image is has tests of its own (test_images.py).
        for field in (one for one in dataclasses.fields(Family) if one.name != "vision"):
            found = field.name, kind(getattr(entries[name], field.name))
            if name in COVERING:
                covered.add(found)
            elif found not in covered:
                missing[found] = name
    assert not missing, f"add some of {sorted(set(missing.values()))} to COVERING: {missing}"


def edits(host: Host, *, scaled: bool) -> list[list[Edit]]:
    """Each component scaled, or else set, patched and, where scores are, cut; each a run of its own."""
    plan = []
    for component in host.oracle.components:
        layers = () if component in UNLAYERED else (LAYER,)
        site = Site(component, layers, (0,), (2, -1))
        if scaled:
            plan.append([Edit(site, oracle.Scale(-0.5))])
            continue
        shape = (*host.oracle.selection(site, len(IDS))[0].shape, *host.oracle.shape(component, len(IDS))[2:])
        values = np.random.RandomState(3).randn(*shape).astype(np.float32)
        operations: list[oracle.Operation] = [oracle.Set(values), oracle.Patch((0,))]
        operations += [oracle.Knockout((0, 2))] if component == "ATTENTION_SCORES" else [oracle.Patch((1,))]
        if component in UNIT_FIRST:
            # Scores and patterns of a prompt of another length do not fit.
            operations = [one for one in operations if one != oracle.Patch((1,))]
        plan += [[Edit(site, operation)] for operation in operations]
    return plan


@of_every_variant
def test_the_logits_are_those_of_the_plain_model(host: Host) -> None:
    for ids in (IDS, LONGER, [7]):
        with torch.no_grad():
            plain = host.oracle.model(torch.tensor([ids]), use_cache=False).logits[0]
        sites = pb.Activations(sites=[wire.site(Site("LOGITS"))])
        answer = host.trace(pb.TraceRequest(prompt=wire.prompt(ids), activations=sites))
        assert_close(answer.activations[-1, 0, 0], plain.numpy())


@of_every_variant
def test_every_activation(host: Host) -> None:
    wanted = [Site(component) for component in host.oracle.components]
    sites = pb.Activations(sites=[wire.site(one) for one in wanted])
    for ids in (IDS, LONGER):
        answer = host.trace(pb.TraceRequest(prompt=wire.prompt(ids), activations=sites))
        expected = host.oracle.run(ids).values
        for (_, number, layer), values in answer.activations.items():
            component = wanted[number].component
            assert_close(values, expected[component, layer].numpy(), f"{component} {layer}")


def test_the_parts_add_up(host: Host) -> None:
    wanted = [Site(name) for name in ("RESIDUAL_PRE", "ATTENTION_OUT", "MLP_OUT", "RESIDUAL_POST", "HEAD_OUT")]
    wanted += [Site("VALUE"), Site("ATTENTION_PATTERN")]
    sites = pb.Activations(sites=[wire.site(one) for one in wanted])
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), activations=sites))
    for layer in range(host.oracle.layers):
        before, attention, mlp, after, mixed, value, pattern = (
            answer.activations[-1, number, layer] for number in range(len(wanted))
        )
        assert_close(after, before + attention + mlp)
        group = host.oracle.heads // host.oracle.key_value_heads
        assert_close(mixed, np.einsum("hqk,khd->qhd", pattern, value.repeat(group, 1)))
        if host.family == "gpt_oss":
            # Its sinks take a share of the weight.
            assert (pattern.sum(-1) < 0.999).all()
        else:
            assert_close(pattern.sum(-1), np.ones(pattern.shape[:2]))


def test_few_and_many_positions_behind_a_prefix(host: Host) -> None:
    """How a run attends depends on how many positions it computes, and how many it shares with its base."""
    ids = [(7 * position + 11) % 300 for position in range(70)]
    plan = [
        [Edit(Site(component, (LAYER,), units, (position,)), oracle.Scale(-0.5))]
        for component, units in (("RESIDUAL_PRE", ()), ("VALUE", (0,)), ("MLP_OUT", ()))
        for position in (1, 9, 34, 37, 66)
    ]
    answer = host.intervene(wire.intervene(ids, plan, TARGETS))
    predictions = [host.oracle.predict(host.oracle.run(ids, run).logits[-1], TARGETS) for run in plan]
    assert_close(answer.columns["log_probabilities"], [one.log_probabilities for one in predictions])
    assert_close(answer.columns["logits"], [one.logits for one in predictions])


@of_every_variant
def test_every_component_scaled(host: Host) -> None:
    assert_edited(host, edits(host, scaled=True))


def test_every_component_set_patched_and_cut(host: Host) -> None:
    assert_edited(host, edits(host, scaled=False))


def assert_edited(host: Host, plan: list[list[Edit]]) -> None:
    answer = host.intervene(wire.intervene(IDS, plan, TARGETS, SOURCES, kl_divergence=True))
    runs = [host.oracle.run(IDS, run, SOURCES) for run in plan]
    predictions = [host.oracle.predict(run.logits[-1], TARGETS) for run in runs]
    unchanged = host.oracle.run(IDS).logits[-1]
    kl = [host.oracle.kl_divergence(unchanged, run.logits[-1]) for run in runs]
    assert_close(answer.columns["log_probabilities"], [one.log_probabilities for one in predictions])
    assert_close(answer.columns["logits"], [one.logits for one in predictions])
    assert_close(answer.columns["kl_divergences"], kl)
    assert_close(answer.columns["edit_norms"], [run.norms for run in runs])
    moved = np.array([run.norms[0] for run in runs])
    assert (moved > 0).all()


@pytest.mark.parametrize("component", ["HEAD_OUT", "KEY", "MLP_OUT"])
def test_a_sweep(host: Host, component: str) -> None:
    sweep = Sweep(Edit(Site(component, (0, 2), (), (1, -1)), oracle.Patch((0,))), layer_window=2)
    answer = host.intervene(wire.intervene(IDS, sweep, TARGETS, SOURCES))
    runs = [host.oracle.run(IDS, run, SOURCES) for run in host.oracle.expand(sweep, len(IDS))]
    expected = [host.oracle.predict(run.logits[-1], TARGETS).log_probabilities for run in runs]
    assert_close(answer.columns["log_probabilities"], expected)


def test_a_causal_trace(host: Host) -> None:
    method = pb.CausalTracing(
        subject_positions=pb.PositionList(positions=[2, 3]),
        gaussian=pb.CausalTracing.Gaussian(samples=2),
        components=[wire.component(name) for name in rome.DEFAULT_COMPONENTS],
        layers=[0, 2],
        positions=[2, 5],
        window=2,
    )
    targets = [wire.target(one) for one in TARGETS]
    answer = host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, causal_tracing=method))
    corruption, deviation = rome.gaussian(host.oracle.model, [2, 3], samples=2)
    assert answer.corruption is not None
    assert_close(answer.corruption.noise_deviation, deviation)
    for component in rome.DEFAULT_COMPONENTS:
        expected = rome.grid(
            host.oracle.model, IDS, corruption, TARGETS, component, [0, 2], [2, 5], window=2
        ).probabilities.mean(-1)
        assert_close(answer.grid(component, "probabilities", [0, 2], [2, 5]), expected, component)


def test_the_lens_and_gradients(host: Host) -> None:
    method = pb.TokenProbability(gradient_norms=True, metric=pb.METRIC_LOG_PROBABILITY)
    targets = [wire.target(one) for one in TARGETS]
    columns = host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), targets=targets, token_probability=method)).columns
    lens = host.oracle.lens(IDS, TARGETS)
    assert_close(columns["log_probabilities"], lens.log_probabilities)
    assert_close(columns["logits"], lens.logits)
    assert_close(columns["kl_divergences"], lens.kl_divergences)
    assert_close(columns["gradient_norms"], host.oracle.gradient_norms(IDS, TARGETS, metric="LOG_PROBABILITY"))


def test_company_of_other_lengths_changes_nothing(host: Host) -> None:
    prompts = [IDS, LONGER, IDS[:3], LONGER[:9], IDS[:1]]
    plan = Sweep(Edit(Site("MLP_OUT", (LAYER,)), oracle.Scale(0.0)))
    with ThreadPoolExecutor(len(prompts)) as pool:
        company = list(pool.map(host.intervene, [wire.intervene(ids, plan, TARGETS) for ids in prompts]))
    for ids, answer in zip(prompts, company, strict=True):
        runs = [host.oracle.run(ids, run) for run in host.oracle.expand(plan, len(ids))]
        expected = [host.oracle.predict(run.logits[-1], TARGETS).log_probabilities for run in runs]
        assert_close(answer.columns["log_probabilities"], expected)


@of_every_variant
def test_what_a_model_does_not_have_is_said_and_refused(host: Host) -> None:
    told = {pb.Component.Name(one.component): one for one in host.model_info().stacks[0].components}
    for component in COMPONENTS:
        support = told[f"COMPONENT_{component}"]
        assert support.available == (component in host.oracle.components), component
        assert bool(support.reason) != support.available
        if not support.available:
            edit = Edit(Site(component, (LAYER,), positions=(2,)), oracle.Scale(0.5))
            refused = wire.refusal(host.stub.Intervene(wire.intervene(IDS, [[edit]], TARGETS), timeout=DEADLINE))
            assert refused.code == grpc.StatusCode.UNIMPLEMENTED
            assert support.reason in refused.message


def test_the_attention_that_was_used_is_told(host: Host) -> None:
    explicit = host.family in ("gemma2", "gpt_oss")
    plain = host.trace(pb.TraceRequest(prompt=wire.prompt(IDS)))
    assert plain.context.provenance.attention == ("eager" if explicit else "sdpa")
    assert host.model_info().provenance.attention == ("eager" if explicit else "sdpa")
    scores = pb.Activations(sites=[wire.site(Site("ATTENTION_SCORES", (0,)))])
    asked = host.trace(pb.TraceRequest(prompt=wire.prompt(IDS), activations=scores))
    assert asked.context.provenance.attention == ("eager" if explicit else "sdpa+eager")


@of_every_variant
def test_the_text_goes_on_as_recomputed_in_full(host: Host) -> None:
    """Sliding windows, biases by distance, capped scores: all over the cache, every component edited as it goes on."""
    plan = [
        [Edit(Site(name, () if name in UNLAYERED else (LAYER,), from_position=first), oracle.Scale(-0.5))]
        for name in host.oracle.components
        for first in (2, len(LONGER) + 1)
    ]
    plan.append([Edit(Site("RESIDUAL_POST", (LAYER,), positions=(3,)), oracle.Scale(-2.0))])
    generation = pb.Generation(max_new_tokens=8, ignore_end_token=True)
    answer = host.intervene(wire.intervene(LONGER, plan, TARGETS, generation=generation))
    for run, edited in enumerate([*plan, []]):
        tokens = answer.said[run if edited else -1].tokens
        logits = continued_logits(host.oracle, LONGER, tokens[:-1], edited).double().numpy()
        for token, row in zip(tokens, logits, strict=True):
            assert row[token] >= row.max() - 1e-4 * max(1.0, np.abs(row).max())


def test_a_text_that_would_be_turned_otherwise_is_refused(host: Host) -> None:
    plan = [[Edit(Site("RESIDUAL_POST", (LAYER,)), oracle.Scale(1.0))]]
    request = wire.intervene(IDS, plan, TARGETS, generation=pb.Generation(max_new_tokens=4))
    if host.family.endswith("-longrope"):
        found = wire.refusal(host.stub.Intervene(request, timeout=DEADLINE))
        assert found.code is grpc.StatusCode.UNIMPLEMENTED
        assert "at most 2" in found.message
    else:
        assert host.intervene(request).said[0].tokens


def attributed(host: Host, components: list[str], ids: list[int] = IDS, **fields: object) -> wire.Answer:
    method = pb.AttributionPatching(
        source=wire.prompt(SOURCES[0][: len(ids)]),
        components=[wire.component(name) for name in components],
        **fields,  # type: ignore[arg-type]
    )
    targets = [wire.target(one) for one in TARGETS]
    return host.trace(pb.TraceRequest(prompt=wire.prompt(ids), targets=targets, attribution_patching=method))


def test_attributions(host: Host) -> None:
    names = list(host.oracle.components)
    found = attributed(host, names).estimates
    question = plain.Question(IDS, SOURCES[0], TARGETS)
    for name in names:
        assert_near(found[name], plain.estimates(host.oracle, question, name), name)


def test_attributions_with_the_softmax_recomputed(host: Host) -> None:
    names, ids = ["QUERY", "KEY"], IDS[:4]
    found = attributed(host, names, ids, recompute_softmax=True).estimates
    question = plain.Question(ids, SOURCES[0][:4], TARGETS)
    for name in names:
        assert_near(found[name], plain.recomputed(host.oracle, question, name), name)


def test_attributed_edges(host: Host) -> None:
    found = attributed(host, [], edges=pb.AttributionPatching.Edges()).edges
    question = plain.Question(IDS, SOURCES[0], TARGETS)
    parallel = "RESIDUAL_MID" not in host.oracle.components
    expected = plain.edges(host.oracle, question, parallel=parallel)
    assert set(found) == set(expected)
    order = list(found)
    assert_near(np.array([found[edge] for edge in order]), np.array([expected[edge] for edge in order]))
