"""Reductions: every statistic against numpy over all the values at once, and parts that join to the whole."""

import itertools
import tracemalloc
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde_server.methods.reduction.largest import Largest
from sonde_server.methods.reduction.moments import Moments
from sonde_server.methods.reductions import reduced
from sonde_server.questions import answers
from sonde_server.questions.activations import Activation, Activations, Encoding, LargestActivations, Pooling
from sonde_server.questions.answers import Answer, CaseAnswer, Context, Progress, ReducedAnswer, Statistic
from sonde_server.questions.attribution_patching import (
    AttributionPatching,
    Attributions,
    EdgeAttributions,
    VerifiedEffect,
)
from sonde_server.questions.cases import Cases, Reduction
from sonde_server.questions.causal_tracing import CausalTracing, Corruption, GaussianCorruption, RestorationGrid
from sonde_server.questions.costs import Cost
from sonde_server.questions.interventions import InterveneQuestion, Readings, Readout
from sonde_server.questions.places import Component, Site
from sonde_server.questions.plans import InterventionList
from sonde_server.questions.prediction import Prediction
from sonde_server.questions.prompts import Metric, Prompt, Target
from sonde_server.questions.reductions import WAITING_BYTES, WHILE_SUMMED
from sonde_server.questions.token_probability import LayerReadings, TokenProbability
from sonde_server.questions.traces import Method, TraceQuestion

from tests.conftest import EFFORT

Array = npt.NDArray[Any]
Rows = tuple[tuple[int, ...], ...]
Streams = Sequence[Sequence[Answer]]
Parts = dict[tuple[str, int, Statistic], list[Answer]]
"""The parts of a reduction, by group, first case and statistic."""
TARGETS = (Target(3), Target(5))
NO_IDS, NO_NUMBERS = np.empty(0, np.int32), np.empty(0, np.float32)


def ask(tokens: int, method: Method, position: int = 0) -> TraceQuestion:
    return TraceQuestion(Prompt(tuple(range(tokens))), TARGETS, position, 2, method)


def context(question: TraceQuestion | InterveneQuestion, draws: np.random.Generator) -> Context:
    numbers = [draws.normal(size=2).astype(np.float32) for _ in range(2)]
    top = np.array([1, 2], np.int32), np.array([-1.0, -2.0], np.float32)
    cost = Cost(*(int(n) for n in draws.integers(1, 50, 5)))
    asked = question.asked
    return Context(asked.prompt.tokens, asked.targets, asked.position, answers.Prediction(*numbers, *top), cost, "sdpa")


def stream(cases: Streams) -> Generator[Answer, None, None]:
    for number, parts in enumerate(cases):
        for part in parts:
            yield CaseAnswer(number, part)
        yield Progress(number, len(cases), cases_done=number + 1, cases=len(cases))


def reduce(
    questions: Sequence[Any], cases: Streams, *, groups: Sequence[str] | None = None, every: int = 0, largest: int = 0
) -> Parts:
    """Reduces the answers to cases, and checks how the parts of the reduction are told apart and ordered."""
    groups = [""] * len(cases) if groups is None else groups
    asked: Cases[Any] = Cases(tuple(questions), tuple(groups), Reduction(every, largest))
    found: Parts = {}
    progress = []
    for answer in reduced(stream(cases), asked):
        if isinstance(answer, Progress):
            progress.append(answer)
            continue
        assert isinstance(answer, ReducedAnswer)
        range_ = range(answer.first_case, answer.first_case + answer.cases)
        assert answer.count == sum(groups[case] == answer.group for case in range_)
        assert answer.first_case % (every or len(cases)) == 0
        assert progress[-1].cases_done >= min(range_.stop, len(cases)), "a part came before its cases"
        key = answer.group, answer.first_case, answer.statistic
        assert key not in found or key == list(found)[-1], "the messages of a statistic were interrupted"
        found.setdefault(key, []).append(answer.part)
    assert [one.cases_done for one in progress] == list(range(1, len(cases) + 1))
    first = {name: number for number, name in reversed(list(enumerate(groups)))}
    assert list(found) == sorted(found, key=lambda key: (key[1], first[key[0]], key[2]))
    return found


def only(parts: Iterable[Answer], kind: type[Any]) -> list[Any]:
    return [part for part in parts if isinstance(part, kind)]


def both(parts: Parts, kind: type[Any], group: str = "", first: int = 0) -> Iterator[tuple[Any, Any]]:
    """Pairs of the mean and the deviation, part by part."""
    pairs = [only(parts[group, first, statistic], kind) for statistic in Statistic]
    yield from zip(*pairs, strict=True)


def assert_moments(mean: Array, deviation: Array, values: Sequence[Array], what: str = "") -> None:
    """The mean and the standard deviation of these values; 0 where there are none."""
    stacked = np.array(values, np.float64) if len(values) else np.zeros((1, *mean.shape))
    np.testing.assert_allclose(mean, stacked.mean(0), rtol=1e-6, atol=1e-6, err_msg=what)
    np.testing.assert_allclose(deviation, stacked.std(0), rtol=1e-6, atol=1e-6, err_msg=what)
    assert mean.dtype == deviation.dtype == np.float32


# ------------------------------------------------------------------ activations


@st.composite
def rows_within(draw: st.DrawFn, rows: int, tokens: int) -> Rows:
    """Named rows: some without positions, some that share positions."""
    positions = st.lists(st.integers(0, tokens - 1), max_size=tokens, unique=True)
    return tuple(tuple(sorted(draw(positions))) for _ in range(rows))


@st.composite
def sites(draw: st.DrawFn) -> list[tuple[int, Site]]:
    """By case, the length of the prompt, and the same site in it."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    kind = draw(st.sampled_from(["all", "listed", "named"]))
    rows = draw(st.integers(1, 4))
    found = []
    for tokens in lengths:
        site = Site(Component.HEAD_OUT, (0, 1), None, None)
        if kind == "listed":
            site = replace(site, positions=tuple(draw(st.integers(0, tokens - 1)) for _ in range(rows)))
        elif kind == "named":
            named = draw(rows_within(rows, tokens))
            site = replace(site, rows=named, positions=tuple(itertools.chain(*named)))
        found.append((tokens, site))
    return found


def rows_of(site: Site, tokens: int) -> Rows:
    """The rows as the contract says: the entries of names, else of positions, else one of all."""
    if site.rows is not None:
        return site.rows
    return (tuple(range(tokens)),) if site.positions is None else tuple((one,) for one in site.positions)


@settings(max_examples=60 * EFFORT)
@given(sites(), st.data())
def test_activations(asked: list[tuple[int, Site]], data: st.DataObject) -> None:
    count = len(asked)
    pooling = data.draw(st.sampled_from([Pooling.NONE, Pooling.MEAN]))
    every = data.draw(st.integers(0, count + 1))
    largest = data.draw(st.integers(0, 4))
    groups = [data.draw(st.sampled_from(["", "a", "b"])) for _ in range(count)]
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ties = data.draw(st.booleans())
    questions, cases = [], []
    for tokens, site in asked:
        question = ask(tokens, Activations((site,), Encoding.FLOAT16, pooling))
        listed = len(rows_of(site, tokens)) if pooling else sum(map(len, rows_of(site, tokens)))
        shape = listed, 2, 3
        values = draws.integers(-2, 3, (2, *shape)) if ties else draws.normal(3, 2, (2, *shape))
        parts = [Activation(-1, 0, layer, one.astype(np.float32)) for layer, one in enumerate(values)]
        questions.append(question)
        cases.append([context(question, draws), *parts])
    found = reduce(questions, cases, groups=groups, every=every, largest=largest)
    step = every or count
    for group, first in itertools.product(dict.fromkeys(groups), range(0, count, step)):
        inside = [case for case in range(first, min(first + step, count)) if groups[case] == group]
        if not inside:
            assert (group, first, Statistic.MEAN) not in found
            continue
        for layer, (mean, deviation) in enumerate(both(found, Activation, group, first)):
            seen = by_row([(case, *asked[case], cases[case][1 + layer].values, pooling) for case in inside])
            assert mean.layer == deviation.layer == layer
            assert mean.encoding is Encoding.FLOAT32
            assert mean.counts == deviation.counts == tuple(map(len, seen))
            for row, values in enumerate(seen):
                assert_moments(mean.values[row], deviation.values[row], [value for value, _, _ in values])
        lists = only(found[group, first, Statistic.MEAN], LargestActivations)
        assert not only(found[group, first, Statistic.DEVIATION], LargestActivations)
        assert len(lists) == (2 if largest else 0)
        for layer, one in enumerate(lists):
            assert_largest(one, by_row([(c, *asked[c], cases[c][1 + layer].values, pooling) for c in inside]), largest)


def by_row(cases: list[tuple[int, int, Site, Array, Pooling]]) -> list[list[tuple[Array, int, int]]]:
    """By row, every value with its case and position, in their order."""
    found: list[list[tuple[Array, int, int]]] = [[] for _ in rows_of(cases[0][2], cases[0][1])]
    for case, tokens, site, values, pooling in cases:
        following = iter(values)
        for row, positions in enumerate(rows_of(site, tokens)):
            if pooling:
                value = next(following)
                found[row] += [(value, case, positions[0])] if positions else []
            else:
                found[row] += [(next(following), case, position) for position in positions]
    return found


def assert_largest(part: LargestActivations, rows: list[list[tuple[Array, int, int]]], most: int) -> None:
    listed = min(most, max(map(len, rows)))
    assert part.values.shape == part.cases.shape == part.positions.shape == (len(rows), 2, 3, listed)
    assert (part.values.dtype, part.cases.dtype, part.positions.dtype) == (np.float32, np.int32, np.int32)
    for row, unit, number in itertools.product(range(len(rows)), range(2), range(3)):
        every = [(float(value[unit, number]), case, position) for value, case, position in rows[row]]
        # A stable sort: of equal values the earlier one is first.
        best = sorted(every, key=lambda one: -one[0])[:most]
        best += [(0.0, -1, -1)] * (listed - len(best))
        place = row, unit, number
        got = zip(part.values[place].tolist(), part.cases[place].tolist(), part.positions[place].tolist(), strict=True)
        assert list(got) == best


@settings(max_examples=60 * EFFORT)
@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=12), st.integers(1, 4), st.data())
def test_batches_make_no_difference(batches: list[list[int]], most: int, data: st.DataObject) -> None:
    """However the values of rows come, and whenever they are summed up."""
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    moments, largest = Moments(3, (2,)), Largest(3, (2,), most)
    seen: list[list[tuple[Array, int, int]]] = [[], [], []]
    for case, rows in enumerate(batches):
        # Both zeros are the same number.
        values = draws.choice(np.array([-2.5, -1.0, -0.0, 0.0, 1.0, 3.0], np.float32), (len(rows), 2))
        positions = draws.permutation(len(rows)).astype(np.int32)
        moments.add(values, np.array(rows, np.intp))
        largest.add(values, np.array(rows, np.intp), case, positions)
        for value, row, position in zip(values, rows, positions.tolist(), strict=True):
            seen[row].append((value, case, position))
        if data.draw(st.booleans(), "fold"):
            moments.fold()
            largest.fold()
    mean, deviation = (moments.read(statistic) for statistic in Statistic)
    listed = largest.read()
    assert moments.counts.tolist() == list(map(len, seen))
    for row, values_seen in enumerate(seen):
        assert_moments(mean[row], deviation[row], [value for value, _, _ in values_seen])
        for unit in range(2):
            best = sorted(((float(v[unit]), c, p) for v, c, p in values_seen), key=lambda one: -one[0])[:most]
            best += [(0.0, -1, -1)] * (min(most, max(map(len, seen))) - len(best))
            assert list(zip(*(part[row, unit].tolist() for part in listed), strict=True)) == best


@settings(max_examples=30 * EFFORT)
@given(st.integers(1, 9), st.lists(st.integers(1, 5), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
def test_parts_join_to_the_whole(every: int, lengths: list[int], seed: int) -> None:
    """As the contract says: counts add up, and with the counts so do means and squares."""
    draws = np.random.default_rng(seed)
    site = Site(Component.RESIDUAL_POST, (0,))
    questions = [ask(tokens, Activations((site,))) for tokens in lengths]
    cases = [[context(one, draws), Activation(-1, 0, 0, draws.normal(50, 3, (one.tokens, 4)).astype(np.float32))]
             for one in questions]  # fmt: skip
    ((whole, spread),) = both(reduce(questions, cases), Activation)
    count, total, squares = 0, np.zeros(4), np.zeros(4)
    parts = reduce(questions, cases, every=every)
    for first in range(0, len(lengths), every):
        ((mean, deviation),) = both(parts, Activation, first=first)
        count += mean.counts[0]
        total += mean.counts[0] * mean.values[0].astype(np.float64)
        squares += mean.counts[0] * (deviation.values[0].astype(np.float64) ** 2 + mean.values[0].astype(float) ** 2)
    assert whole.counts == (count,)
    np.testing.assert_allclose(whole.values[0], total / count, rtol=1e-6)
    # Squares of about 50 cancel to one of about 3, after means were rounded to float32.
    np.testing.assert_allclose(spread.values[0] ** 2, squares / count - (total / count) ** 2, atol=2e-3)


def test_a_small_spread_of_large_numbers_is_not_lost() -> None:
    """The squares of such numbers have no digits left for it."""
    draws = np.random.default_rng(0)
    values = (2.0**23 + draws.integers(0, 4, (3000, 1, 5))).astype(np.float32)
    question = ask(1, Activations((Site(Component.RESIDUAL_POST, (0,)),)))
    cases = [[context(question, draws), Activation(-1, 0, 0, one)] for one in values]
    ((mean, deviation),) = both(reduce([question] * 3000, cases), Activation)
    assert_moments(mean.values[0], deviation.values[0], list(values[:, 0]))


@pytest.mark.parametrize("largest", [0, 2])
def test_memory_does_not_grow_with_the_cases(largest: int) -> None:
    question = ask(1, Activations((Site(Component.RESIDUAL_POST, (0,)),)))
    count, size = 400, 1 << 16

    def answered() -> Generator[Answer, None, None]:
        draws = np.random.default_rng(0)
        for case in range(count):
            yield CaseAnswer(case, context(question, draws))
            yield CaseAnswer(case, Activation(-1, 0, 0, np.full((1, size), case % 7, np.float32)))

    cases: Cases[TraceQuestion] = Cases((question,) * count, ("",) * count, Reduction(0, largest))
    tracemalloc.start()
    try:
        *_, last = (one for one in reduced(answered(), cases) if one.statistic is Statistic.DEVIATION)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(last, ReducedAnswer)
    assert isinstance(last.part, Activation)
    np.testing.assert_allclose(last.part.values, (np.arange(count) % 7).std(), rtol=1e-6)
    assert most < WHILE_SUMMED * WAITING_BYTES < count * size * 4, "the answers were kept"


# ------------------------------------------------------------------ the other parts


def test_the_context_has_the_statistics_of_the_prediction() -> None:
    draws = np.random.default_rng(1)
    questions = [ask(tokens, Prediction()) for tokens in (3, 4, 5)]
    contexts = [context(question, draws) for question in questions]
    parts = reduce(questions, [[one] for one in contexts])
    assert [type(part) for found in parts.values() for part in found] == [Context, Context]
    ((mean, deviation),) = both(parts, Context)
    for one in (mean, deviation):
        assert (one.tokens, one.position, one.targets, one.attention) == ((), 0, TARGETS, "sdpa")
        assert len(one.clean.top_tokens) == len(one.clean.top_log_probabilities) == 0
        costs = [case.cost for case in contexts]
        assert one.cost == Cost(
            *(sum(getattr(cost, name) for cost in costs)
              for name in ("runs", "token_layers", "full_token_layers", "answer_bytes", "tokens")), 3,
        )  # fmt: skip
    for name in ("log_probabilities", "logits"):
        values = [getattr(one.clean, name) for one in contexts]
        assert_moments(getattr(mean.clean, name), getattr(deviation.clean, name), values, name)


@pytest.mark.parametrize("divergence", [False, True])
def test_readings_run_by_run(divergence: bool) -> None:
    draws = np.random.default_rng(2)
    readout = Readout(TARGETS, 0, 2, divergence)
    question = InterveneQuestion(Prompt((1, 2)), (), InterventionList(()), readout)
    columns = {"log_probabilities": 2, "logits": 2, "edit_norms": 3}

    def some(offset: int, count: int) -> Readings:
        numbers: dict[str, Any] = {
            name: draws.normal(size=(count, width)).astype(np.float32) for name, width in columns.items()
        }
        divergences = draws.normal(size=count).astype(np.float32) if divergence else None
        top = draws.integers(0, 9, (count, 2)).astype(np.int32), draws.normal(size=(count, 2)).astype(np.float32)
        return Readings(
            offset, numbers["log_probabilities"], numbers["logits"], divergences, *top, numbers["edit_norms"]
        )

    cases = [[context(question, draws), some(0, 4), some(4, 2)] for _ in range(5)]
    parts = reduce([question] * 5, cases)
    for number, (mean, deviation) in enumerate(both(parts, Readings)):
        assert mean.offset == deviation.offset == 4 * number
        assert mean.top_tokens.shape == mean.top_log_probabilities.shape == (len(mean.logits), 0)
        for name in [*columns, *(["kl_divergences"] if divergence else [])]:
            values = [getattr(case[1 + number], name) for case in cases]
            assert_moments(getattr(mean, name), getattr(deviation, name), values, name)
        assert (mean.kl_divergences is None) is not divergence


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_the_lens_row_by_row(norms: bool, named: bool) -> None:
    draws = np.random.default_rng(3)
    depths, lengths = 4, [3, 5, 4]
    rows: list[Rows] = [((0,), (), (0, 1, 2)), ((4, 1), (), (0,)), ((), (), (3, 2))]
    questions, cases = [], []
    for tokens, row in zip(lengths, rows, strict=True):
        question = ask(tokens, TokenProbability(norms, Metric.LOGIT, row if named else None), position=tokens - 1)
        gradients = draws.normal(size=(depths, tokens, 2)).astype(np.float32) if norms else None
        parts: list[Answer] = [context(question, draws)]
        for position in itertools.chain(*row) if named else [tokens - 1]:
            numbers = [draws.normal(size=(depths, 2)).astype(np.float32) for _ in range(2)]
            ranks = draws.integers(0, 300, (depths, 2)).astype(np.int32)
            top = draws.integers(0, 9, (depths, 2)).astype(np.int32), draws.normal(size=(depths, 2)).astype(np.float32)
            divergences = draws.normal(size=depths).astype(np.float32)
            where = tuple(range(tokens)) if gradients is not None else ()
            parts.append(
                LayerReadings(
                    tuple(range(depths)), numbers[0], numbers[1], ranks, divergences, *top, gradients, where, position
                )
            )
            gradients = None
        questions.append(question)
        cases.append(parts)
    pairs = list(both(reduce(questions, cases), LayerReadings))
    expected = rows if named else [((tokens - 1,),) for tokens in lengths]
    assert [mean.position for mean, _ in pairs] == list(range(len(expected[0])))
    for row, (mean, deviation) in enumerate(pairs):
        read: list[Any] = []
        gradients_read: list[Array] = []
        for case, own in zip(cases, expected, strict=True):
            before = sum(map(len, own[:row]))
            read += case[1 + before : 1 + before + len(own[row])]
            gradients_read += [case[1].gradient_norms[:, [p]] for p in own[row] if norms]
        assert mean.count == deviation.count == len(read)
        assert mean.depths == (0, 1, 2, 3)
        assert mean.top_tokens.shape == (depths, 0)
        for name in ("log_probabilities", "logits", "ranks", "kl_divergences"):
            values = [getattr(one, name) for one in read]
            assert_moments(getattr(mean, name), getattr(deviation, name), values, name)
        assert mean.positions == ((row,) if norms else ())
        if norms:
            assert_moments(mean.gradient_norms, deviation.gradient_norms, gradients_read)
        else:
            assert mean.gradient_norms is None


@pytest.mark.parametrize("named", [False, True])
def test_grids_row_by_row(named: bool) -> None:
    """A subject of one token is both its first and its last; one of two has no middle."""
    draws = np.random.default_rng(4)
    layers = (0, 2, 3)
    rows: list[Rows] = [((1,), (), (1,)), ((1,), (2, 3), (4,)), ((0,), (), (1,))]
    questions, cases = [], []
    for row in rows:
        positions = tuple(sorted({*itertools.chain(*row)})) if named else (0, 2, 4)
        components = Component.MLP_OUT, Component.TOKEN_EMBEDDING
        method = CausalTracing(
            GaussianCorruption(), False, (0,), components, 1, layers, positions, False, row if named else None
        )  # fmt: skip
        question = ask(6, method)
        numbers = [draws.random(2).astype(np.float32) for _ in range(3)]
        corruption = Corruption(*numbers, (0,), float(draws.random()), None)
        parts: list[Answer] = [context(question, draws), Progress(0, 1), corruption]
        for component in components:
            own = () if component is Component.TOKEN_EMBEDDING else layers
            for position in positions:
                shape = 1, max(1, len(own)), 2
                grids = [draws.random(shape).astype(np.float32) for _ in range(3)]
                parts.append(RestorationGrid(component, (position,), own, *grids, None))
        questions.append(question)
        cases.append([part for part in parts if not isinstance(part, Progress)])
    found = reduce(questions, cases)
    ((mean, deviation),) = both(found, Corruption)
    assert mean.positions == ()
    every = [only(case, Corruption)[0] for case in cases]
    for name in ("probabilities", "deviations", "logits"):
        assert_moments(getattr(mean, name), getattr(deviation, name), [getattr(one, name) for one in every], name)
    noise = [one.noise_deviation for one in every]
    np.testing.assert_allclose([mean.noise_deviation, deviation.noise_deviation], [np.mean(noise), np.std(noise)])
    pairs = list(both(found, RestorationGrid))
    assert [mean.component for mean, _ in pairs] == [Component.MLP_OUT, Component.TOKEN_EMBEDDING]
    for mean, deviation in pairs:
        component = mean.component
        assert mean.positions == deviation.positions == (0, 1, 2)
        assert mean.layers == (() if component is Component.TOKEN_EMBEDDING else layers)
        for row in range(3):
            grids_read = []
            for case, own_rows in zip(cases, rows, strict=True):
                wanted = own_rows[row] if named else ((0, 2, 4)[row],)
                grids_read += [grid for grid in only(case, RestorationGrid)
                               if grid.component is component and grid.positions[0] in wanted]  # fmt: skip
            assert mean.counts[row] == deviation.counts[row] == len(grids_read)
            for name in ("probabilities", "deviations", "logits"):
                values = [getattr(grid, name)[0] for grid in grids_read]
                assert_moments(getattr(mean, name)[row], getattr(deviation, name)[row], values, name)


def patching(tokens: int, rows: Rows | None = None, edges: int | None = None) -> AttributionPatching:
    return AttributionPatching(
        Prompt(tuple(range(tokens))), (Component.MLP_OUT,), 1, Metric.LOGIT, 0, edges=edges, rows=rows
    )  # fmt: skip


@pytest.mark.parametrize("named", [False, True])
def test_estimates_row_by_row(named: bool) -> None:
    draws = np.random.default_rng(5)
    lengths = [3, 5, 4]
    rows: list[Rows] = [((0,), (1, 2)), ((), (3,)), ((2,), ())]
    questions, cases = [], []
    for tokens, row in zip(lengths, rows, strict=True):
        question = ask(tokens, patching(tokens, row if named else None))
        places = len(row) if named else tokens
        parts = [
            Attributions(Component.HEAD_OUT, (layer,), tuple(range(places)),
                         draws.normal(size=(1, places, 3, 2)).astype(np.float32))
            for layer in range(2)
        ]  # fmt: skip
        questions.append(question)
        cases.append([context(question, draws), *parts])
    for layer, (mean, deviation) in enumerate(both(reduce(questions, cases), Attributions)):
        assert mean.layers == (layer,)
        whole = [only(case, Attributions)[layer].estimates[0] for case in cases]
        if not named:
            assert mean.counts == (sum(lengths),)
            assert_moments(mean.estimates[0, 0], deviation.estimates[0, 0], list(np.concatenate(whole)))
            continue
        assert mean.positions == (0, 1)
        assert mean.counts == deviation.counts == (2, 2)
        for row in range(2):
            values = [one[row] for one, own in zip(whole, rows, strict=True) if own[row]]
            assert_moments(mean.estimates[0, row], deviation.estimates[0, row], values)


@pytest.mark.parametrize("top", [0, 3])
def test_edges_in_the_order_of_their_means(top: int) -> None:
    """Each case lists them in an order of its own."""
    draws = np.random.default_rng(6)
    ends = [((Component.HEAD_OUT, 0, head), (Component.QUERY, 1, reader)) for head in range(3) for reader in range(2)]
    question = ask(3, patching(3, edges=top))
    cases: list[list[Answer]] = []
    seen: dict[Any, list[Array]] = {edge: [] for edge in ends}
    for _ in range(4):
        order = draws.permutation(len(ends))
        estimates = draws.normal(size=(len(ends), 2)).astype(np.float32)
        for number, estimate in zip(order, estimates, strict=True):
            seen[ends[number]].append(estimate)
        sender, receiver = (np.array([ends[number][end] for number in order], np.int32) for end in range(2))
        cases.append([context(question, draws), EdgeAttributions(0, sender, receiver, estimates)])
    ((mean, deviation),) = both(reduce([question] * 4, cases), EdgeAttributions)
    expected = sorted(seen, key=lambda edge: -abs(float(np.mean([one[0] for one in seen[edge]]))))[: top or None]
    for part in (mean, deviation):
        got = [(tuple(a), tuple(b)) for a, b in zip(part.senders.tolist(), part.receivers.tolist(), strict=True)]
        assert got == expected
    for number, edge in enumerate(expected):
        assert_moments(mean.estimates[number], deviation.estimates[number], seen[edge])


def test_what_has_no_statistics_is_a_mistake() -> None:
    draws = np.random.default_rng(7)
    question = ask(3, patching(3))
    effect = VerifiedEffect(Site(Component.MLP_OUT, (0,)), NO_NUMBERS, NO_NUMBERS)
    with pytest.raises(TypeError, match="a VerifiedEffect has no statistics"):
        reduce([question], [[context(question, draws), effect]])
