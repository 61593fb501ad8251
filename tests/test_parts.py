"""A part of a question has the numbers that it has in the whole.

What is asked decides how far down gradients go, which kernel computes attention, what is kept and which runs share a
batch. None of that may show in a number. So every method is asked for all that it gives, and then piece by piece: the
whole is divided at random, and each piece comes with random targets, options and a random length of what follows it.
"""

import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.sharing.driving import complete

from tests.conftest import DEADLINE, EFFORT, Host, Hosts
from tests.support import oracle, strategies, wire
from tests.support.oracle import UNIT_FIRST, UNLAYERED, Edit, Scale, Site, Sweep, Target
from tests.support.strategies import Bounds
from tests.support.tolerance import assert_close, assert_near

T = TypeVar("T")

IDS = [5, 130, 77, 301, 9, 260, 41]
OTHER = [8, 131, 70, 12, 299, 261, 40]
LONGER = [17, 18, 250, 305, 61, 2, 99, 101, 307]
SOURCES = [OTHER, LONGER]
TARGETS = [Target(41), Target(200, contrast=12), Target(7), Target(300, contrast=41)]
SUBJECT = (1, 2)
TOP = 5
SAMPLES = 3
METRICS = ("LOGIT", "LOG_PROBABILITY", "PROBABILITY")


# Weights in rows and in columns; attention beside the MLP; sinks and windows; caps.
@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "gpt_oss", "gemma2"])
def host(request: pytest.FixtureRequest, hosts: Hosts) -> Host:
    return hosts[request.param]


class Wholes:
    """Answers to whole questions, each asked once of each family."""

    def __init__(self) -> None:
        self._answers: dict[Hashable, wire.Answer] = {}

    def trace(self, host: Host, request: pb.TraceRequest) -> wire.Answer:
        key = host.family, request.SerializeToString(deterministic=True)
        if key not in self._answers:
            self._answers[key] = host.trace(request)
        return self._answers[key]


@pytest.fixture(scope="module")
def wholes() -> Wholes:
    return Wholes()


@st.composite
def pieces(draw: st.DrawFn, of: Sequence[T]) -> list[list[T]]:
    """All of something, divided into pieces of one to three."""
    left, found = list(draw(st.permutations(of))), []
    while left:
        size = draw(st.integers(1, 3))
        found.append(left[:size])
        left = left[size:]
    return found


@st.composite
def some(draw: st.DrawFn, of: Sequence[T], least: int = 1) -> list[T]:
    """Some of these, in any order."""
    return draw(st.lists(st.sampled_from(of), min_size=least, max_size=3, unique=True)) if of else []


def trace(targets: Sequence[Target] = TARGETS, ids: Sequence[int] = IDS, **fields: Any) -> pb.TraceRequest:
    return pb.TraceRequest(prompt=wire.prompt(ids), targets=[wire.target(one) for one in targets], **fields)


def cut(data: st.DataObject, position: int) -> int:
    """How much of the prompt is asked about: what follows the position that is read has no say."""
    return data.draw(st.integers(position + 1, len(IDS)), "length")


def forget(host: Host, data: st.DataObject) -> None:
    """Now and then nothing is kept of what was asked before."""
    if data.draw(st.booleans(), "forget"):
        host.server.scheduler.engine.cache.clear()


def targets_of(data: st.DataObject) -> tuple[list[int], list[Target]]:
    columns = data.draw(some(range(len(TARGETS))), "targets")
    return columns, [TARGETS[column] for column in columns]


def assert_predicted(part: wire.Answer, whole: wire.Answer, columns: list[int], top: int) -> None:
    """The prediction of the unchanged run."""
    for name in ("log_probabilities", "logits"):
        values, all_values = (np.array(getattr(answer.context.clean, name)) for answer in (part, whole))
        assert_close(values, all_values[columns], name)
    tokens, all_tokens = ([one.id for one in answer.context.clean.top_tokens] for answer in (part, whole))
    assert tokens == all_tokens[:top]


@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_token_probability(host: Host, wholes: Wholes, data: st.DataObject) -> None:
    metric = pb.Metric.Value(f"METRIC_{data.draw(st.sampled_from(METRICS))}")
    position = data.draw(st.integers(0, len(IDS) - 1), "position")
    method = pb.TokenProbability(gradient_norms=True, metric=metric)
    whole = wholes.trace(host, trace(position=position, top_k=TOP, token_probability=method))
    columns, targets = targets_of(data)
    top, norms = data.draw(st.integers(0, TOP)), data.draw(st.booleans())
    length = cut(data, position)
    forget(host, data)
    method = pb.TokenProbability(gradient_norms=norms, metric=metric)
    part = host.trace(trace(targets, IDS[:length], position=position, top_k=top, token_probability=method))
    assert_predicted(part, whole, columns, top)
    for name in ("log_probabilities", "logits", "ranks"):
        assert_close(part.columns[name], whole.columns[name][:, columns], name)
    assert_close(part.columns["kl_divergences"], whole.columns["kl_divergences"])
    if top:
        np.testing.assert_array_equal(part.columns["top_token_ids"], whole.columns["top_token_ids"][:, :top])
    assert ("gradient_norms" in part.columns) == norms
    if norms:
        assert_near(part.columns["gradient_norms"], whole.columns["gradient_norms"][:, :length, columns])


CORRUPTIONS: list[dict[str, Any]] = [
    {"gaussian": pb.CausalTracing.Gaussian(samples=SAMPLES)},
    {"gaussian": pb.CausalTracing.Gaussian(samples=SAMPLES, standard_deviation=0.5), "replace": True},
    {"counterfactual": wire.prompt([IDS[0], *OTHER[1:3], *IDS[3:]])},
]


def causal(names: Sequence[str], samples: int = SAMPLES, *, per_sample: bool, **fields: Any) -> pb.CausalTracing:
    method = pb.CausalTracing(components=[wire.component(name) for name in names], per_sample=per_sample, **fields)
    if method.HasField("gaussian"):
        method.gaussian.samples = samples
    if not method.HasField("counterfactual"):
        method.subject_positions.positions.extend(SUBJECT)
    return method


@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_causal_tracing(host: Host, wholes: Wholes, data: st.DataObject) -> None:
    names, layers = host.oracle.components, range(host.oracle.layers)
    shared = {**data.draw(st.sampled_from(CORRUPTIONS)), "window": data.draw(st.sampled_from((1, 2, 10)))}
    position = data.draw(st.sampled_from((len(IDS) - 1, 3)), "position")
    whole = wholes.trace(host, trace(position=position, causal_tracing=causal(names, per_sample=True, **shared)))
    every = 1 if "counterfactual" in shared else SAMPLES
    for piece in data.draw(pieces(names)):
        columns, targets = targets_of(data)
        samples, told = data.draw(st.integers(1, every), "samples"), data.draw(st.booleans(), "per sample")
        length = len(IDS) if "counterfactual" in shared else cut(data, position)
        mine = data.draw(some(layers, least=0), "layers")
        at = data.draw(some(range(length), least=0), "positions")
        forget(host, data)
        method = causal(piece, samples, per_sample=told, layers=mine, positions=at, **shared)
        part = host.trace(trace(targets, IDS[:length], position=position, causal_tracing=method))
        assert set(part.cells) == set(piece)
        for name in piece:
            expected = {
                (where, layer) for where in at or range(length)
                for layer in ((-1,) if name in UNLAYERED else mine or layers)
            }  # fmt: skip
            assert set(part.cells[name]) == expected
            for place, values in part.cells[name].items():
                assert_cell(values, whole.cells[name][place], columns, samples, every)


def assert_cell(
    part: dict[str, npt.NDArray[Any]], whole: dict[str, npt.NDArray[Any]], columns: list[int], samples: int, every: int
) -> None:
    """A cell of these targets, over the first of the samples."""
    each = whole["sample_probabilities"][columns, :samples]
    assert_close(part["probabilities"], each.mean(-1))
    assert_close(part["deviations"], each.std(-1))
    if "sample_probabilities" in part:
        assert_close(part["sample_probabilities"], each)
    if samples == every:
        assert_close(part["logits"], whole["logits"][columns])


def patching(names: Sequence[str], *, edges: bool, **fields: Any) -> pb.AttributionPatching:
    return pb.AttributionPatching(
        components=[wire.component(name) for name in names],
        edges=pb.AttributionPatching.Edges() if edges else None,
        **fields,
    )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"integration_steps": 2},
    {"drop_layers": True},
    {"recompute_softmax": True},
    {"recompute_softmax": True, "integration_steps": 2},
    {"integration": pb.INTEGRATION_ENDS},
    {"recompute_softmax": True, "integration": pb.INTEGRATION_ENDS},
    {"recompute_softmax": True, "drop_layers": True},
]


@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_attribution_patching(host: Host, wholes: Wholes, data: st.DataObject) -> None:
    names, options = host.oracle.components, data.draw(st.sampled_from(OPTIONS), "options")
    shared = {**options, "metric": pb.Metric.Value(f"METRIC_{data.draw(st.sampled_from(METRICS))}")}
    position = data.draw(st.sampled_from((len(IDS) - 1, 3)), "position")
    edges = "drop_layers" not in shared

    def ask(names: Sequence[str], targets: Sequence[Target], length: int, **fields: Any) -> pb.TraceRequest:
        method = patching(names, source=wire.prompt(OTHER[:length]), **shared, **fields)
        return trace(targets, IDS[:length], position=position, attribution_patching=method)

    whole = wholes.trace(host, ask(names, TARGETS, len(IDS), edges=edges))
    for piece in data.draw(pieces(names)):
        if "recompute_softmax" in shared and not {"QUERY", "KEY"} & set(piece):
            continue
        columns, targets = targets_of(data)
        length, beside = cut(data, position), edges and data.draw(st.booleans(), "edges")
        verified = data.draw(st.integers(0, 3), "verified")
        forget(host, data)
        part = host.trace(ask(piece, targets, length, edges=beside, verify_top=verified))
        assert list(part.estimates) == piece
        for name in piece:
            assert_near(part.estimates[name], whole.estimates[name][:, :length][..., columns], name)
        assert_edges(part, whole, columns, asked=beside)
        assert_verified(host, part, targets, position, IDS[:length], shared["metric"], verified)
    if edges and "recompute_softmax" not in shared:
        columns, targets = targets_of(data)
        assert_edges(host.trace(ask([], targets, len(IDS), edges=True)), whole, columns, asked=True)


def assert_edges(part: wire.Answer, whole: wire.Answer, columns: list[int], *, asked: bool) -> None:
    assert set(part.edges) == (set(whole.edges) if asked else set())
    order = list(part.edges)
    if order:
        mine, every = (np.array([answer.edges[edge] for edge in order]) for answer in (part, whole))
        assert_near(mine, every[:, columns])


def assert_verified(
    host: Host,
    part: wire.Answer,
    targets: Sequence[Target],
    position: int,
    ids: Sequence[int],
    metric: int,
    count: int,
) -> None:
    """The largest of all that is estimated here, and what an intervention that patches the place measures."""
    assert len(part.verified) == count
    if not count:
        return
    sizes = np.sort(np.concatenate([np.abs(array[..., 0]).ravel() for array in part.estimates.values()]))[::-1]
    np.testing.assert_array_equal([abs(one.estimated[0]) for one in part.verified], sizes[:count])
    plan = []
    for effect in part.verified:
        site = effect.site
        name = pb.Component.Name(site.component).removeprefix("COMPONENT_")
        layers, units, positions = tuple(site.layers), tuple(site.units), tuple(site.positions)
        estimated = part.estimates[name][(*(layers or (0,)), *positions, *units)]
        np.testing.assert_array_equal(effect.estimated, estimated)
        plan.append([Edit(Site(name, layers, units, positions), oracle.Patch((0,)))])
    asked = wire.intervene(ids, plan, targets, [OTHER[: len(ids)]], position=position)
    answer = host.intervene(asked)
    column = "logits" if metric == pb.METRIC_LOGIT else "log_probabilities"
    after, before = answer.columns[column], np.array(getattr(answer.context.clean, column))
    if metric == pb.METRIC_PROBABILITY:
        after, before = np.exp(after), np.exp(before)
    assert_close([effect.measured for effect in part.verified], after - before)


def everywhere(host: Host) -> list[Site]:
    """Every component, whole."""
    return [Site(name) for name in host.oracle.components]


@st.composite
def within(draw: st.DrawFn, host: Host, site: Site) -> Site:
    """A part of a site that is whole."""
    layers = () if site.component in UNLAYERED else draw(some(range(host.oracle.layers), least=0))
    units = draw(some(range(host.oracle.units(site.component)), least=0))
    positions = draw(some(range(len(IDS)), least=0))
    return Site(site.component, tuple(layers), tuple(units), tuple(positions))


def assert_read(
    host: Host, part: wire.Answer, wanted: Sequence[Site], whole: wire.Answer, runs: dict[int, int]
) -> None:
    """What is read at these sites, in the runs of the part, each the run of that number of the whole."""
    places = {site.component: number for number, site in enumerate(everywhere(host))}
    expected = {
        (run, number, layer)
        for run in runs
        for number, site in enumerate(wanted)
        for layer in ((0,) if site.component in UNLAYERED else site.layers or range(host.oracle.layers))
    }
    assert set(part.activations) == expected
    for (run, number, layer), values in part.activations.items():
        site = wanted[number]
        every = whole.activations[runs[run], places[site.component], layer]
        where = tuple(index.numpy() for index in host.oracle.selection(site, len(IDS)))
        assert_close(values, every[where], str(site))


def reads(found: Sequence[Site]) -> list[pb.Site]:
    return [wire.site(site) for site in found]


@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_activations(host: Host, wholes: Wholes, data: st.DataObject) -> None:
    every = pb.Activations(sites=reads(everywhere(host)))
    whole = wholes.trace(host, trace(top_k=TOP, activations=every))
    for piece in data.draw(pieces(everywhere(host))):
        wanted = [data.draw(within(host, site)) for site in piece]
        columns, targets = targets_of(data)
        forget(host, data)
        part = host.trace(trace(targets, activations=pb.Activations(sites=reads(wanted))))
        assert_predicted(part, whole, columns, 0)
        assert_read(host, part, wanted, whole, {-1: -1})


def assert_readings(
    part: wire.Answer, whole: wire.Answer, runs: Sequence[int], columns: Sequence[int], options: dict[str, Any]
) -> None:
    """The rows of these runs."""
    for name in ("log_probabilities", "logits"):
        assert_close(part.columns[name], whole.columns[name][runs][:, columns], name)
    assert ("kl_divergences" in part.columns) == bool(options.get("kl_divergence"))
    if "kl_divergences" in part.columns:
        assert_close(part.columns["kl_divergences"], whole.columns["kl_divergences"][runs])
    if top := options.get("top_k"):
        np.testing.assert_array_equal(part.columns["top_token_ids"], whole.columns["top_token_ids"][runs][:, :top])
    norms = part.columns["edit_norms"]
    every = whole.columns["edit_norms"][runs]
    # As wide as the longest list of edits.
    assert not every[:, norms.shape[1] :].any()
    assert_close(norms, every[:, : norms.shape[1]])


def options_of(data: st.DataObject) -> dict[str, Any]:
    return {"kl_divergence": data.draw(st.booleans(), "divergence"), "top_k": data.draw(st.integers(0, TOP), "top")}


def bounds(host: Host) -> Bounds:
    return Bounds(host.oracle, len(IDS), [0], [1])


@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_a_list_of_interventions(host: Host, data: st.DataObject) -> None:
    plan = data.draw(strategies.plans(bounds(host))) + data.draw(strategies.plans(bounds(host)))
    all_options: dict[str, Any] = {"kl_divergence": True, "top_k": TOP}
    sites = reads(everywhere(host))
    whole = host.intervene(wire.intervene(IDS, plan, TARGETS, SOURCES, activations=sites, **all_options))
    plain = host.intervene(wire.intervene(IDS, plan, TARGETS, SOURCES, **all_options))
    assert_readings(plain, whole, range(len(plan)), range(len(TARGETS)), all_options)
    for piece in data.draw(pieces(range(len(plan)))):
        columns, targets = targets_of(data)
        options, read = options_of(data), data.draw(some(everywhere(host), least=0))
        wanted = [data.draw(within(host, site)) for site in read]
        forget(host, data)
        asked = [plan[number] for number in piece]
        part = host.intervene(wire.intervene(IDS, asked, targets, SOURCES, activations=reads(wanted), **options))
        assert_readings(part, whole, piece, columns, options)
        if wanted:
            assert_read(host, part, wanted, whole, {-1: -1, **dict(enumerate(piece))})


@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_places_of_one_block(host: Host, data: st.DataObject) -> None:
    """Asked one after another, runs that restart in the same block go on from what is kept of it."""
    layer = data.draw(st.integers(0, host.oracle.layers - 1), "layer")
    names = [name for name in host.oracle.components if name not in UNLAYERED]
    plan = [[Edit(Site(name, (layer,), (0,), (at,)), Scale(-1.0))] for name in names for at in (1, 4, 6)]
    whole = host.intervene(wire.intervene(IDS, plan, TARGETS))
    for piece in data.draw(pieces(range(len(plan)))):
        columns, targets = targets_of(data)
        part = host.intervene(wire.intervene(IDS, [plan[number] for number in piece], targets))
        assert_readings(part, whole, piece, columns, {})


def parts_of(data: st.DataObject, host: Host, sweep: Sweep) -> tuple[Sweep, list[int]]:
    """A sweep along parts of its axes, and the numbers of its runs in the whole."""
    layers, units, positions = host.oracle.axes(sweep, len(IDS))
    site, operation = sweep.edit.site, sweep.edit.operation
    chosen: list[list[int]] = []
    sizes = []
    for axis, values in (("LAYER", layers), ("UNIT", units), ("POSITION", positions)):
        whole = [0] if axis in sweep.together or not values else list(range(len(values)))
        sizes.append(len(whole))
        chosen.append(data.draw(some(whole), axis) if len(whole) > 1 else whole)
    if sizes[0] > 1:
        site = replace(site, layers=tuple(layers[index] for index in chosen[0]))
    if sizes[1] > 1:
        site = replace(site, units=tuple(units[index] for index in chosen[1]))
    if sizes[2] > 1:
        site = replace(site, positions=tuple(positions[index] for index in chosen[2]))
        if isinstance(operation, oracle.Patch) and operation.source_positions:
            operation = replace(operation, source_positions=tuple(operation.source_positions[i] for i in chosen[2]))
    numbers = [
        (layer * sizes[1] + unit) * sizes[2] + position
        for layer in chosen[0] for unit in chosen[1] for position in chosen[2]
    ]  # fmt: skip
    return replace(sweep, edit=Edit(site, operation)), numbers


@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_a_sweep(host: Host, data: st.DataObject) -> None:
    sweep = data.draw(strategies.sweeps(bounds(host)))
    all_options: dict[str, Any] = {"kl_divergence": True, "top_k": TOP}
    whole = host.intervene(wire.intervene(IDS, sweep, TARGETS, SOURCES, **all_options))
    columns, targets = targets_of(data)
    options = options_of(data)
    smaller, numbers = parts_of(data, host, sweep)
    forget(host, data)
    part = host.intervene(wire.intervene(IDS, smaller, targets, SOURCES, **options))
    assert_readings(part, whole, numbers, columns, options)
    written = [host.oracle.expand(sweep, len(IDS))[number] for number in numbers]
    forget(host, data)
    part = host.intervene(wire.intervene(IDS, written, targets, SOURCES, **options))
    assert_readings(part, whole, numbers, columns, options)


def generated(host: Host) -> list[list[Edit]]:
    """Every component at one position, and from one on."""
    last = host.oracle.layers - 1
    plan = []
    for name in host.oracle.components:
        for layer in (0,) if name in UNLAYERED else (0, last):
            layers = () if name in UNLAYERED else (layer,)
            plan.append([Edit(Site(name, layers, (0, 1), (2,)), Scale(-2.0))])
            if name not in UNIT_FIRST:
                plan.append([Edit(Site(name, layers, (0, 1), from_position=4), Scale(-2.0))])
    return plan


def continuations(runs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The unchanged run and these, with their numbers in the whole."""
    yield -1, -1
    yield from enumerate(runs)


@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_generation(host: Host, data: st.DataObject) -> None:
    plan, temperature = generated(host), data.draw(st.sampled_from((0.0, 0.7)), "temperature")
    shared: dict[str, Any] = {"temperature": temperature, "ignore_end_token": data.draw(st.booleans(), "ignore end")}
    longest = pb.Generation(max_new_tokens=5, **shared)
    all_options: dict[str, Any] = {"kl_divergence": True, "top_k": TOP}
    whole = host.intervene(wire.intervene(IDS, plan, TARGETS, generation=longest, **all_options))
    plain = host.intervene(wire.intervene(IDS, plan, TARGETS, **all_options))
    assert_readings(plain, whole, range(len(plan)), range(len(TARGETS)), all_options)
    for piece in data.draw(pieces(range(len(plan)))):
        columns, targets = targets_of(data)
        options, most = options_of(data), data.draw(st.integers(1, 5), "tokens")
        forget(host, data)
        asked = [plan[number] for number in piece]
        generation = pb.Generation(max_new_tokens=most, **shared)
        part = host.intervene(wire.intervene(IDS, asked, targets, generation=generation, **options))
        assert_readings(part, whole, piece, columns, options)
        for mine, number in continuations(piece):
            assert part.said[mine].tokens == whole.said[number].tokens[:most], plan[number]


def test_beside_others(host: Host) -> None:
    """Calls that share batches, about one prompt, with targets of their own, each continued by some tokens."""
    plan = generated(host)
    generation = pb.Generation(max_new_tokens=6, ignore_end_token=True)
    whole = host.intervene(wire.intervene(IDS, plan, TARGETS, generation=generation))
    scheduler, released = host.server.scheduler, threading.Event()
    calls = [(list(range(number, len(plan), 4)), [number]) for number in range(4)]
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        with scheduler.session(caller="test", cancelled=threading.Event()) as session:
            held = pool.submit(complete, session.call(released.wait), session)
            answers = []
            for runs, columns in calls:
                targets = [TARGETS[column] for column in columns]
                request = wire.intervene(IDS, [plan[run] for run in runs], targets, generation=generation)
                answers.append(pool.submit(host.intervene, request))
            deadline = time.monotonic() + DEADLINE
            while scheduler.queued_runs < len(plan):
                assert time.monotonic() < deadline, "not all were accepted"
                time.sleep(0.005)
            released.set()
            held.result(DEADLINE)
        for (runs, columns), answer in zip(calls, answers, strict=True):
            part = answer.result(DEADLINE)
            assert_readings(part, whole, runs, columns, {})
            for mine, number in continuations(runs):
                assert part.said[mine].tokens == whole.said[number].tokens, plan[number]


def test_the_same_question_has_the_same_bits(host: Host) -> None:
    """Many runs over several corrupted bases: their order in a batch is that of the question, wherever they lie."""
    request = trace(causal_tracing=causal(host.oracle.components, per_sample=True, window=2, **CORRUPTIONS[0]))
    engine = host.server.scheduler.engine
    first = None
    for _ in range(5):
        engine.cache.clear()
        cells = host.trace(request).cells
        first = first or cells
        for name, grid in cells.items():
            for place, values in grid.items():
                for column, array in values.items():
                    np.testing.assert_array_equal(array, first[name][place][column], f"{name} {place} {column}")
