"""Answers to cases, and statistics over them, as streams: a message is about one, and those of one join."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb
from sonde_server.questions import answers
from sonde_server.questions.activations import Activation, LargestActivations
from sonde_server.questions.answers import CaseAnswer, ReducedAnswer, Statistic
from sonde_server.questions.attribution_patching import Attributions
from sonde_server.questions.causal_tracing import RestorationGrid
from sonde_server.questions.costs import Cost
from sonde_server.questions.generation import FinishReason, Generated
from sonde_server.questions.interventions import Readings
from sonde_server.questions.places import Component
from sonde_server.questions.prompts import Target
from sonde_server.questions.token_probability import LayerReadings
from sonde_server.wire import encode_intervene, encode_trace

from tests.support import wire
from tests.support.reading import MODEL, VOCABULARY

MESSAGE_LIMIT = 1 << 20


def floats(*shape: int, seed: int = 0) -> answers.Floats:
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def context(case: int, **fields: Any) -> answers.Context:
    tokens = tuple(range(5, 8 + case))
    cost = Cost(1, 2, 3, 4, 5, fields.pop("cases", 0))
    return answers.Context(tokens, (Target(41 + case),), case, None, cost, "sdpa", **fields)


def readings(case: int, runs: int, top: int = 3) -> Readings:
    ids = np.random.RandomState(case).randint(0, 420, (runs, top)).astype(np.int32)
    return Readings(
        0, floats(runs, 1, seed=case), floats(runs, 1), None, ids, floats(runs, top), floats(runs, 1, seed=case)
    )


def still() -> float:
    """A clock that stands."""
    return 0.0


def trace(parts: Iterable[answers.Answer]) -> list[pb.TraceResponse]:
    return list(encode_trace(parts, MODEL, VOCABULARY, "1", still))


def intervene(parts: Iterable[answers.Answer]) -> list[pb.InterveneResponse]:
    return list(encode_intervene(parts, MODEL, VOCABULARY, "1", still))


# ------------------------------------------------------------------ case by case


@settings(max_examples=20)
@given(sizes=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 40)), min_size=1, max_size=5))
def test_every_case_joins_as_a_single_prompt_does(sizes: list[tuple[int, int]]) -> None:
    def parts() -> Iterator[answers.Answer]:
        for case, (runs, top) in enumerate(sizes):
            yield CaseAnswer(case, context(case))
            yield CaseAnswer(case, readings(case, runs, top))
            yield answers.Progress(case + 1, len(sizes), runs=True, cases_done=case + 1, cases=len(sizes))

    messages = intervene(parts())
    assert max(message.ByteSize() for message in messages) <= MESSAGE_LIMIT
    groups = [(case, list(group)) for case, group in groupby(messages, key=lambda message: message.case_index)]
    assert [case for case, _ in groups] == list(range(len(sizes)))
    for case, group in groups:
        answer, expected = wire.join_intervene(group), readings(case, *sizes[case])
        assert [token.id for token in answer.context.tokens] == list(context(case).tokens)
        np.testing.assert_array_equal(answer.columns["log_probabilities"], expected.log_probabilities)
        # Every case has a table of texts of its own.
        assert answer.token_texts == {
            token: VOCABULARY.text(token) for token in np.unique(expected.top_tokens).tolist()
        }
    last = messages[-1].progress
    assert (last.cases_done, last.cases) == (len(sizes), len(sizes))


def test_a_small_case_is_one_message() -> None:
    parts: list[answers.Answer] = []
    for case in range(50):
        parts += [CaseAnswer(case, context(case)), CaseAnswer(case, Activation(-1, 0, 1, floats(2, 3, seed=case)))]
    messages = trace(parts)
    assert [message.case_index for message in messages] == list(range(50))
    for case, message in enumerate(messages):
        values = wire.join_trace([message]).activations[-1, 0, 1]
        np.testing.assert_array_equal(values, floats(2, 3, seed=case))


def test_progress_between_cases_belongs_to_no_message_of_its_own() -> None:
    parts: list[answers.Answer] = [answers.Progress(0, 99, cases=2)]
    for case in range(2):
        parts += [CaseAnswer(case, context(case)), answers.Progress(case + 1, 99, cases_done=case + 1, cases=2)]
    messages = trace(parts)
    assert [(one.case_index, one.progress.cases_done, one.HasField("context")) for one in messages] == [
        (0, 1, True),
        (1, 2, True),
    ]


def test_spans_and_costs_are_in_the_context() -> None:
    (message,) = trace([context(0, spans=(("subject", (1, 2)), ("empty", ())), cases=7)])
    assert [(span.name, list(span.positions)) for span in message.context.spans] == [("subject", [1, 2]), ("empty", [])]
    assert (message.context.cost.tokens, message.context.cost.cases) == (5, 7)


def test_continuations_of_cases_begin_anew() -> None:
    """The text that a token adds depends on the tokens before it, which are those of its own case."""
    halves = VOCABULARY.encode("\u0142").tokens[-2:]
    assert VOCABULARY.decode(halves) == "\u0142"
    first, second = halves

    def parts(case: int) -> Iterator[answers.Answer]:
        yield CaseAnswer(case, context(case))
        yield CaseAnswer(case, Generated(0, (-1,), (0,), (first,), (None,)))
        if case:
            yield CaseAnswer(case, Generated(1, (-1,), (0,), (second,), (FinishReason.LENGTH,)))

    messages = intervene([*parts(0), *parts(1)])
    texts = {message.case_index: "".join(part.text for part in message.generated) for message in messages}
    assert texts == {0: "", 1: "\u0142"}


# ------------------------------------------------------------------ statistics


def reduced(part: answers.Answer, statistic: Statistic, group: str = "", first: int = 0) -> ReducedAnswer:
    return ReducedAnswer(group, statistic, first, 8, 5, part)


def test_every_message_of_a_reduction_says_which_statistic_it_is() -> None:
    parts = [
        reduced(part, statistic, group, first)
        for first in (0, 8)
        for group in ("a", "b")
        for statistic in Statistic
        for part in (context(0), Activation(-1, 0, 0, floats(2, 300_000), counts=(5, 4)))
    ]
    messages = trace(parts)
    assert max(message.ByteSize() for message in messages) <= MESSAGE_LIMIT
    about = [
        (key, list(group))
        for key, group in groupby(messages, key=lambda message: message.reduction.SerializeToString())
    ]
    told = [pb.ReductionPart.FromString(key) for key, _ in about]
    assert [(one.first_case, one.group, int(one.statistic)) for one in told] == [
        (first, group, int(statistic)) for first in (0, 8) for group in ("a", "b") for statistic in Statistic
    ]
    assert {(one.cases, one.count) for one in told} == {(8, 5)}
    for _, group in about:
        answer = wire.join_trace(group)
        np.testing.assert_array_equal(answer.activations[-1, 0, 0], floats(2, 300_000))
        assert all(list(part.counts) == [5, 4] for message in group for part in message.activations)


def test_a_single_answer_is_about_no_reduction() -> None:
    (message,) = trace([context(0)])
    assert not message.HasField("reduction")
    assert message.case_index == 0


def test_the_largest_values_go_along() -> None:
    largest = LargestActivations(
        0, 1, 2, floats(2, 3, 4), np.arange(24, dtype=np.int32).reshape(2, 3, 4), np.ones((2, 3, 4), np.int32)
    )
    for messages in (trace([reduced(largest, Statistic.MEAN)]), intervene([reduced(largest, Statistic.MEAN)])):
        (part,) = messages[0].largest
        assert (part.run, part.site, part.layer, list(part.shape)) == (0, 1, 2, [2, 3, 4])
        np.testing.assert_array_equal(wire.array(part.values), largest.values.reshape(-1))
        np.testing.assert_array_equal(wire.array(part.cases), largest.cases.reshape(-1))


@pytest.mark.parametrize("targets", [1, 60_000])
def test_counts_follow_their_rows(targets: int) -> None:
    """Cut into several messages or not, a row comes with its count."""
    rows, layers = 3, 2
    values = floats(rows, layers, targets)
    grid = RestorationGrid(
        Component.MLP_OUT, tuple(range(rows)), tuple(range(layers)), values, values, values, None, (7, 8, 9)
    )
    estimates = Attributions(Component.MLP_OUT, (0,), tuple(range(rows)), floats(1, rows, targets), (7, 8, 9))
    messages = trace([reduced(grid, Statistic.MEAN), reduced(estimates, Statistic.MEAN)])
    counts = {7: 0, 8: 1, 9: 2}
    cut: list[Any] = [part for message in messages for part in (*message.grids, *message.attributions)]
    assert (len(cut) > 2) == (targets > 1)
    for part in cut:
        assert [counts[count] for count in part.counts] == list(part.positions)


def test_mean_ranks_are_no_whole_numbers() -> None:
    layers = LayerReadings(
        (0, 1), floats(2, 1), floats(2, 1), np.array([[0.5], [2.25]], np.float32), floats(2),
        np.zeros((2, 0), np.int32), floats(2, 0), None, (), position=3, count=9,
    )  # fmt: skip
    (message,) = trace([reduced(layers, Statistic.MEAN)])
    assert message.layers.ranks.data_type == pb.DATA_TYPE_FLOAT32
    np.testing.assert_array_equal(wire.array(message.layers.ranks), [[0.5], [2.25]])
    assert (message.layers.position, message.layers.row_count) == (3, 9)
