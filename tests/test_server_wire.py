"""Tensors as bytes, and answers as streams: whatever is cut and joined comes out as it went in."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Limits
from sonde_server.errors import InvalidQuestion
from sonde_server.model.vocabulary import Vocabulary
from sonde_server.questions import answers
from sonde_server.questions.activations import Activation
from sonde_server.questions.causal_tracing import RestorationGrid
from sonde_server.questions.interventions import Readings
from sonde_server.questions.places import Component, ModelDescription
from sonde_server.questions.prompts import Target
from sonde_server.questions.token_probability import LayerReadings
from sonde_server.wire import encode_intervene, encode_model, encode_trace
from sonde_server.wire.fields import Reader
from sonde_server.wire.tensors import check_broadcasts, decode_tensor

from tests.support import wire
from tests.support.models import byte_level_tokenizer

MESSAGE_LIMIT = 1 << 20
VOCABULARY = Vocabulary(byte_level_tokenizer(), 420)
MODEL = ModelDescription(
    name="hand-made", revision="1", architecture="llama", data_type="bfloat16", device="cpu", attention="sdpa",
    layers=4, hidden_size=16, heads=4, key_value_heads=2, head_size=4, neurons=32, vocabulary_size=420,
    max_positions=2**40, parameters=2**33, unavailable={Component.RESIDUAL_MID: "attention and MLP run in parallel"},
)  # fmt: skip
CONTEXT = answers.Context((5, 6, 7), (Target(41),), 2, None, answers.Cost(1, 2, 3, 4), "sdpa")


class Clock:
    """Moves on by a second whenever it is looked at, or stands."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def reader() -> Reader:
    return Reader(MODEL, VOCABULARY, Limits())


def floats(*shape: int, seed: int = 0) -> answers.Floats:
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


# ------------------------------------------------------------------ tensors


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=st.floats(-1e4, 1e4, width=16)
    )
)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_every_float_type_is_read_as_torch_has_it(name: str, values: Any) -> None:
    held = torch.from_numpy(values).to(getattr(torch, name))
    raw = (
        held.contiguous().view(torch.int16 if name != "float32" else torch.int32).numpy().tobytes()
        if held.numel()
        else b""
    )
    message = pb.Tensor(data_type=pb.DataType.Value(f"DATA_TYPE_{name.upper()}"), shape=values.shape, data=raw)
    problems = reader()
    decoded = decode_tensor(message, "set", problems)
    problems.problems.settle()
    assert decoded is not None
    np.testing.assert_array_equal(decoded, held.float().numpy())


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (pb.Tensor(shape=[1], data=bytes(4)), "set.data_type"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=[1], data=bytes(4)), "set.data_type"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[-1], data=bytes(4)), "set.shape"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1] * 9, data=bytes(4)), "set.shape"),
        # A shape of 2^62 values is never made.
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[2**31 - 1] * 2, data=bytes(4)), "set.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_BFLOAT16, shape=[2], data=bytes(3)), "set.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT16, shape=[1], data=b"\x00\x7c"), "set.data"),
    ],
)
def test_a_tensor_that_is_none_is_refused(tensor: pb.Tensor, field: str) -> None:
    problems = reader()
    assert decode_tensor(tensor, "set", problems) is None
    with pytest.raises(InvalidQuestion) as caught:
        problems.problems.settle()
    assert [violation.field for violation in caught.value.violations] == [field]


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3)


@given(SHAPES, SHAPES)
def test_broadcasting_is_numpys_where_the_selection_keeps_its_shape(given_shape: Any, selected: Any) -> None:
    try:
        expected = np.broadcast_shapes(given_shape, selected) == selected
    except ValueError:
        expected = False
    assert check_broadcasts(np.zeros(given_shape, np.float32), selected, "set", reader()) == expected


# ------------------------------------------------------------------ streams


def readings(runs: int, targets: int, top: int, edits: int, kl: bool, splits: Sequence[int]) -> list[Readings]:
    ids = np.random.RandomState(1).randint(0, 420, (runs, top)).astype(np.int32)
    whole: tuple[Any, ...] = (
        floats(runs, targets),
        floats(runs, targets, seed=2),
        floats(runs),
        ids,
        floats(runs, top),
        floats(runs, edits),
    )
    edges = sorted({0, runs, *(split % runs for split in splits)})
    parts = []
    for start, stop in pairwise(edges):
        logs, logits, divergences, tokens, tops, norms = (values[start:stop] for values in whole)
        parts.append(Readings(start, logs, logits, divergences if kl else None, tokens, tops, norms))
    return parts


@settings(max_examples=40)
@given(
    runs=st.integers(1, 4000),
    targets=st.integers(1, 60),
    top=st.integers(0, 60),
    edits=st.integers(1, 3),
    kl=st.booleans(),
    splits=st.lists(st.integers(0, 4000), max_size=6),
)
def test_readings_come_out_as_they_went_in(
    runs: int, targets: int, top: int, edits: int, kl: bool, splits: list[int]
) -> None:
    parts = readings(runs, targets, top, edits, kl, splits)
    answer = wire.join_intervene(encode_intervene([CONTEXT, *parts], MODEL, VOCABULARY, "1", Clock(0)))
    assert max(answer.sizes) <= MESSAGE_LIMIT
    expected = {
        "log_probabilities": [part.log_probabilities for part in parts],
        "logits": [part.logits for part in parts],
        "edit_norms": [part.edit_norms for part in parts],
    }
    if kl:
        expected["kl_divergences"] = [part.kl_divergences for part in parts if part.kl_divergences is not None]
    if top:
        expected["top_log_probabilities"] = [part.top_log_probabilities for part in parts]
        ids = np.concatenate([part.top_tokens for part in parts])
        np.testing.assert_array_equal(answer.columns.pop("top_token_ids"), ids)
        assert answer.token_texts == {token: VOCABULARY.text(token) for token in np.unique(ids).tolist()}
    assert set(answer.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(answer.columns[name], np.concatenate(values))


def test_a_text_goes_along_once() -> None:
    parts = readings(3000, 1, 40, 1, kl=False, splits=[])
    messages = list(encode_intervene([CONTEXT, *parts], MODEL, VOCABULARY, "1", Clock(0)))
    told = [token for message in messages for token in message.readings.token_texts]
    assert len(messages) > 1
    assert len(told) == len(set(told))


def test_a_small_answer_is_one_message_however_long_it_takes() -> None:
    def parts() -> Iterator[answers.Answer]:
        yield CONTEXT
        for run in range(16):
            one = floats(1, 1)
            yield Readings(run, one, one, None, np.zeros((1, 0), np.int32), floats(1, 0), one)
            yield answers.Progress(run + 1, 16)

    answer = wire.join_intervene(encode_intervene(parts(), MODEL, VOCABULARY, "1", Clock(1)))
    assert answer.messages == 1
    assert answer.progress == pb.Progress(done=16, total=16)


@pytest.mark.parametrize(("step", "several"), [(0.0, False), (1.0, True)])
def test_a_long_one_tells_of_its_progress_in_time(step: float, several: bool) -> None:
    parts: list[answers.Answer] = [CONTEXT, *(answers.Progress(done, 100) for done in range(1, 101))]
    answer = wire.join_intervene(encode_intervene(parts, MODEL, VOCABULARY, "1", Clock(step)))
    assert (answer.messages > 1) == several
    assert answer.progress == pb.Progress(done=100, total=100)


def test_the_first_results_do_not_wait_behind_the_first_progress() -> None:
    """The message before had none, so they are due at once; the next ones half a second later."""
    clock = Clock(0)

    def parts() -> Iterator[answers.Answer]:
        yield CONTEXT
        clock.now = 0.6
        yield answers.Progress(0, 100)
        for run, now in ((0, 0.7), (1, 0.8), (2, 1.3)):
            clock.now = now
            one = floats(1, 1)
            yield Readings(run, one, one, None, np.zeros((1, 0), np.int32), floats(1, 0), one)
            yield answers.Progress(run + 1, 100)

    messages = list(encode_intervene(parts(), MODEL, VOCABULARY, "1", clock))
    assert [(one.progress.done, one.readings.count) for one in messages] == [(0, 0), (1, 1), (3, 2)]


@pytest.mark.parametrize("shape", [(3, 2), (600, 1000), (1 << 20,)])
def test_activations_of_any_size(shape: tuple[int, ...]) -> None:
    parts = [Activation(run, 1, 2, floats(*shape, seed=run + 1)) for run in (-1, 0)]
    both = [
        wire.join_trace(encode_trace([CONTEXT, *parts], MODEL, VOCABULARY, "1", Clock(0))),
        wire.join_intervene(encode_intervene([CONTEXT, *parts], MODEL, VOCABULARY, "1", Clock(0))),
    ]
    for answer in both:
        assert max(answer.sizes) <= MESSAGE_LIMIT
        for part in parts:
            np.testing.assert_array_equal(answer.activations[part.run, 1, 2], part.values)


@pytest.mark.parametrize(("positions", "layers", "samples"), [(3, 4, 0), (200, 48, 10), (2, 90, 3000)])
def test_grids_of_any_size(positions: int, layers: int, samples: int) -> None:
    shape = (positions, layers, 2)
    grid = RestorationGrid(
        Component.MLP_OUT, tuple(range(positions)), tuple(range(layers)), floats(*shape), floats(*shape, seed=1),
        floats(*shape, seed=2), floats(*shape, samples) if samples else None,
    )  # fmt: skip
    answer = wire.join_trace(encode_trace([CONTEXT, grid], MODEL, VOCABULARY, "1", Clock(0)))
    assert max(answer.sizes) <= MESSAGE_LIMIT
    for name in ("probabilities", "deviations", "logits", *(["sample_probabilities"] if samples else [])):
        np.testing.assert_array_equal(answer.grid("MLP_OUT", name, grid.layers, grid.positions), getattr(grid, name))


@pytest.mark.parametrize("positions", [3, 5000])
def test_depths_of_any_size(positions: int) -> None:
    depths, targets, top = 49, 3, 10
    layers = LayerReadings(
        tuple(range(depths)), floats(depths, targets), floats(depths, targets), np.ones((depths, targets), np.int32),
        floats(depths), np.full((depths, top), 7, np.int32), floats(depths, top), floats(depths, positions, targets),
        tuple(range(positions)),
    )  # fmt: skip
    answer = wire.join_trace(encode_trace([CONTEXT, layers], MODEL, VOCABULARY, "1", Clock(0)))
    assert max(answer.sizes) <= MESSAGE_LIMIT
    np.testing.assert_array_equal(answer.columns["gradient_norms"], layers.gradient_norms)
    np.testing.assert_array_equal(answer.columns["ranks"], layers.ranks)
    assert answer.token_texts == {7: VOCABULARY.text(7)}


def test_the_model_is_described_with_every_component() -> None:
    message = encode_model(MODEL, Limits(max_runs=9), "1.2")
    support = {one.component: one for one in message.stacks[0].components}
    assert set(support) == {number for number in pb.Component.values() if number}
    assert not support[pb.COMPONENT_RESIDUAL_MID].available
    assert support[pb.COMPONENT_RESIDUAL_MID].reason == "attention and MLP run in parallel"
    assert all(one.available == (not one.reason) for one in support.values())
    assert (message.parameters, message.max_positions, message.limits.max_runs) == (2**33, 2**31 - 1, 9)
    assert (message.provenance.data_type, message.provenance.server_version) == (pb.DATA_TYPE_BFLOAT16, "1.2")
