"""How activations leave: pooled over the positions of each row, in the type that is asked for; against plain torch."""

from collections.abc import Iterable
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from sonde.v1 import inspection_pb2 as pb
from sonde_server.engine import Capture
from sonde_server.engine.pooling import leaving
from sonde_server.questions.activations import Encoding, Pooling
from sonde_server.questions.places import Component
from sonde_server.wire.tensors import encode_floats

from tests.conftest import DEADLINE, EFFORT, Host
from tests.support import wire
from tests.support.oracle import UNIT_FIRST, Edit, Scale, Site, Target
from tests.support.tolerance import assert_close

IDS = [5, 130, 77, 301, 9, 260, 41]
TARGETS = [Target(41)]
TYPES = {
    pb.DATA_TYPE_FLOAT32: torch.float32,
    pb.DATA_TYPE_BFLOAT16: torch.bfloat16,
    pb.DATA_TYPE_FLOAT16: torch.float16,
}
READ = [Site("RESIDUAL_POST", (0, 2)), Site("HEAD_OUT", (1,), (1,)), Site("NEURON", (3,)), Site("LOGITS")]
SUBJECT = [1, 2, 3]
POOLED = {pb.POOLING_MEAN: lambda values: values.mean(0), pb.POOLING_MAX: lambda values: values.max(0)}
PLAN = [[Edit(Site("MLP_OUT", (1,), (), (2,)), Scale(0.0))], [Edit(Site("HEAD_OUT", (0,), (1,), (1, 4)), Scale(3.0))]]
# By kind, what a site names, and the positions of each row.
NAMED = [
    pb.NamedPositions(span="subject"),
    pb.NamedPositions(span="subject", part=pb.SPAN_PART_LAST),
    pb.NamedPositions(part=pb.SPAN_PART_LAST),
]
ROWS: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "all": ({}, [[*range(len(IDS))]]),
    "listed": ({"positions": [4, -1, 0]}, [[4], [6], [0]]),
    "named": ({"named_positions": NAMED}, [SUBJECT, [3], [6]]),
}


def prompt() -> pb.Prompt:
    spans = [pb.Span(name="subject", positions=pb.PositionList(positions=SUBJECT))]
    return pb.Prompt(token_ids=pb.TokenIds(ids=IDS), spans=spans)


def sites(kind: str = "all") -> list[pb.Site]:
    found = [wire.site(site) for site in READ]
    for site in found:
        site.MergeFrom(pb.Site(**ROWS[kind][0]))
    return found


def trace(read: Iterable[pb.Site], **fields: Any) -> pb.TraceRequest:
    targets = [wire.target(one) for one in TARGETS]
    return pb.TraceRequest(prompt=prompt(), targets=targets, activations=pb.Activations(sites=read, **fields))


def intervene(read: Iterable[pb.Site], plan: list[list[Edit]] | None = None, **fields: Any) -> pb.InterveneRequest:
    request = wire.intervene(IDS, PLAN if plan is None else plan, TARGETS, activations=read, **fields)
    request.prompt.CopyFrom(prompt())
    return request


def values_of(stream: Iterable[Any]) -> dict[tuple[int, int, int], torch.Tensor]:
    """Every activation by run, site and layer, as torch reads its bytes."""
    found: dict[tuple[int, int, int], list[pb.ActivationSlice]] = {}
    for message in stream:
        for part in message.activations:
            found.setdefault((part.run, part.site, part.layer), []).append(part)
    return {key: torch.cat([as_torch(part.values) for part in parts]).reshape(tuple(parts[0].shape))
            for key, parts in found.items()}  # fmt: skip


def as_torch(tensor: pb.Tensor) -> torch.Tensor:
    values = torch.frombuffer(bytearray(tensor.data), dtype=TYPES[tensor.data_type])
    return values.reshape(tuple(tensor.shape))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("pooling", POOLED)
def test_positions_are_joined_row_by_row(host: Host, pooling: pb.Pooling.ValueType, kind: str) -> None:
    traced = values_of(host.stub.Trace(trace(sites(kind), pooling=pooling), timeout=DEADLINE))
    changed = values_of(host.stub.Intervene(intervene(sites(kind), pooling=pooling), timeout=DEADLINE))
    assert {key: value for key, value in changed.items() if key[0] == -1}.keys() == traced.keys()
    for run, edits in enumerate([[], *PLAN], -1):
        hooked = host.oracle.run(IDS, edits)
        for number, site in enumerate(READ):
            for layer in host.oracle.layers_of(site):
                whole = host.oracle.activation(hooked, site, layer, len(IDS))
                expected = np.stack([POOLED[pooling](whole[row]) for row in ROWS[kind][1]])
                assert_close(changed[run, number, layer], expected, f"run {run}, {site}, {layer}")
                if run < 0:
                    assert_close(traced[run, number, layer], expected, f"{site}, {layer}")


@pytest.mark.parametrize("data_type", TYPES)
@pytest.mark.parametrize("pooling", [pb.POOLING_UNSPECIFIED, pb.POOLING_MEAN])
def test_values_leave_in_the_type_that_is_asked_for(
    host: Host, data_type: pb.DataType.ValueType, pooling: pb.Pooling.ValueType
) -> None:
    """As torch rounds them, and in as many bytes as were announced."""
    whole = values_of(host.stub.Trace(trace(sites(), pooling=pooling), timeout=DEADLINE))
    messages = list(host.stub.Trace(trace(sites(), data_type=data_type, pooling=pooling), timeout=DEADLINE))
    rounded = values_of(messages)
    assert rounded.keys() == whole.keys()
    for key, values in rounded.items():
        assert torch.equal(values, whole[key].to(TYPES[data_type]))
    sent = sum(len(part.values.data) for message in messages for part in message.activations)
    assert messages[0].context.cost.answer_bytes == sent
    fields = {"activations_data_type": data_type, "pooling": pooling}
    messages = list(host.stub.Intervene(intervene(sites(), **fields), timeout=DEADLINE))
    changed = values_of(messages)
    for key, values in rounded.items():
        assert torch.equal(changed[key], values), "the unchanged run of an intervention"
    assert {values.dtype for values in changed.values()} == {TYPES[data_type]}
    # Beside the activations: for both runs a log-probability, a logit, and the distance of the edit.
    sent = sum(len(part.values.data) for message in messages for part in message.activations)
    assert messages[0].context.cost.answer_bytes == sent + len(PLAN) * 3 * 4


@settings(max_examples=300 * EFFORT)
@given(arrays.arrays(np.uint32, 16))
def test_every_number_is_rounded_as_torch_does(bits: npt.NDArray[np.uint32]) -> None:
    every = bits.view(np.float32)
    # The hardest: exactly between two numbers of 16 bits.
    halfway = (bits & 0xFFFF0000 | 0x8000).view(np.float32)
    for encoding in Encoding:
        for values in (every, halfway):
            kept = values[np.isfinite(values) & (np.abs(values) < encoding.beyond)]
            encoded = encode_floats(kept, encoding)
            assert list(encoded.shape) == [len(kept)]
            if len(kept):
                expected = torch.from_numpy(kept.copy()).to(TYPES[encoded.data_type])
                assert encoded.data == expected.view(torch.uint8).numpy().tobytes()
                assert expected.isfinite().all()


@pytest.mark.parametrize("encoding", [Encoding.BFLOAT16, Encoding.FLOAT16])
def test_what_is_beyond_a_type_is_the_first_number_that_torch_makes_infinite(encoding: Encoding) -> None:
    kind = TYPES[pb.DataType.ValueType(encoding)]
    least = torch.tensor(encoding.beyond, dtype=torch.float32)
    assert least.to(kind).isinf()
    assert not torch.nextafter(least, torch.tensor(0.0)).to(kind).isinf()


def test_numbers_beyond_the_type_are_refused(host: Host) -> None:
    """The model holds them in float32, and so does BFLOAT16."""
    loud = [[Edit(Site("RESIDUAL_POST", (2,), (), (3,)), Scale(1e7))]]
    read = [wire.site(Site("RESIDUAL_POST", (2,)))]
    half = intervene(read, loud, activations_data_type=pb.DATA_TYPE_FLOAT16)
    refused = wire.refusal(host.stub.Intervene(half, timeout=DEADLINE))
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reasons == ["NOT_FINITE"]
    assert refused.message.startswith("RESIDUAL_POST of layer 2 has ")
    assert "beyond the range of FLOAT16; ask for BFLOAT16 or FLOAT32" in refused.message
    wide = intervene(read, loud, activations_data_type=pb.DATA_TYPE_BFLOAT16)
    found = values_of(host.stub.Intervene(wide, timeout=DEADLINE))[0, 0, 2]
    assert found.isfinite().all()
    assert found.abs().max() > 65504


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.MAX])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_pooling_hides_no_number_that_is_not_finite(pooling: Pooling, bad: float) -> None:
    values = torch.zeros(4, 3)
    values[1, 2] = bad
    pooled = leaving(values, Capture(Component.RESIDUAL_POST, 0, (0, 1, 2, 3), None, pooling, (2, 2)))
    assert pooled.isfinite().tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("method", ["trace", "readout"])
def test_what_cannot_be_encoded_or_pooled_is_refused(host: Host, method: str) -> None:
    pairs = [wire.site(Site(name, (0,))) for name in sorted(UNIT_FIRST)]
    for read, fields, name, told in (
        (sites(), {"data_type": pb.DATA_TYPE_INT32}, "data_type", "expected FLOAT32, BFLOAT16 or FLOAT16, got INT32"),
        (sites(), {"pooling": 7}, "pooling", "expected MEAN or MAX, got pooling 7"),
        (pairs, {"pooling": pb.POOLING_MAX}, "pooling", "can be pooled, got ATTENTION_PATTERN"),
    ):
        if method == "trace":
            call, path = host.stub.Trace(trace(read, **fields), timeout=DEADLINE), f"activations.{name}"
        else:
            renamed = {"activations_data_type" if key == "data_type" else key: value for key, value in fields.items()}
            call, path = (
                host.stub.Intervene(intervene(read, **renamed), timeout=DEADLINE),
                f"readout.{next(iter(renamed))}",
            )
        refused = wire.refusal(call)
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
        assert list(refused.violations) == [path]
        assert told in refused.violations[path]
