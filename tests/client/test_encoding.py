"""From Python to the contract's messages and back."""

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import pytest
import sonde
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sonde import _signatures
from sonde._ask import names
from sonde._methods.interventions import intervene_request
from sonde._methods.method import Method
from sonde._methods.trace import trace_request
from sonde._wire.tensors import from_tensor, to_tensor
from sonde.v1 import inspection_pb2 as pb

from tests.support.questions import QUESTIONS

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def trace_of(method: Method[Any] | None = None, prompt: Any = "text", **options: Any) -> pb.TraceRequest:
    given = {"targets": None, "position": None, "top_k": 3, "dry_run": False} | options
    return trace_request(prompt, method, **given)


def intervention_of(plan: Any, prompt: Any = "text", **options: Any) -> pb.InterveneRequest:
    given = {
        "targets": None,
        "sources": (),
        "position": None,
        "top_k": 3,
        "kl_divergence": False,
        "activations": (),
        "generation": None,
        "dry_run": False,
    } | options
    return intervene_request(prompt, plan, **given)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
def test_floats_come_back_bit_by_bit(dtype: Any, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(np.dtype(dtype), allow_nan=True)))
    back = from_tensor(to_tensor(array, "x"))
    assert back.dtype == dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(sizes=64) | hnp.boolean_dtypes(), SHAPES))
def test_other_numbers_become_float32(array: Any) -> None:
    with np.errstate(over="ignore"):
        expected = array.astype(np.float32)
    back = from_tensor(to_tensor(array, "x"))
    assert back.dtype == np.float32
    assert back.tobytes() == expected.tobytes()


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
def test_layout_and_byte_order_do_not_matter(array: Any) -> None:
    assert to_tensor(array.astype(">f4"), "x") == to_tensor(array, "x")
    assert to_tensor(np.asfortranarray(array), "x").data == np.ascontiguousarray(array).tobytes()


@given(hnp.arrays(np.uint16, SHAPES))
def test_bfloat16_is_the_upper_half_of_float32(bits: Any) -> None:
    sent = pb.Tensor(data_type=pb.DATA_TYPE_BFLOAT16, shape=bits.shape, data=bits.astype("<u2").tobytes())
    back = from_tensor(sent)
    assert back.dtype == np.float32
    assert np.array_equal(back.view(np.uint32) >> 16, bits)
    assert not (back.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_come_back(dtype: str) -> None:
    array = np.array([[-1, 2**31 - 1]], dtype)
    kind = pb.DataType.Value(f"DATA_TYPE_{dtype.upper()}")
    assert np.array_equal(from_tensor(pb.Tensor(data_type=kind, shape=[1, 2], data=array.tobytes())), array)


@pytest.mark.parametrize(
    "broken",
    [
        pb.Tensor(shape=[1], data=b"1234"),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"),
        pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[-1, -1], data=b"1234"),
        pb.Tensor(data_type=99, shape=[1], data=b"1234"),  # type: ignore[arg-type]
    ],
)
def test_a_broken_tensor_is_refused(broken: pb.Tensor) -> None:
    with pytest.raises(sonde.ProtocolError):
        from_tensor(broken)


@pytest.mark.parametrize("values", ["text", [[1], [1, 2]], np.array([1j]), np.array([object()])])
def test_what_is_no_array_of_numbers_is_refused(values: Any) -> None:
    with pytest.raises(sonde.InvalidRequest) as caught:
        intervention_of(sonde.add(sonde.residual(layer=1), values))
    assert caught.value.violations[0].field == "add"


@pytest.mark.parametrize(
    ("literal", "enum", "prefix"),
    [
        (names.ComponentName, pb.Component, "COMPONENT_"),
        (names.StackName, pb.Stack, "STACK_"),
        (names.MetricName, pb.Metric, "METRIC_"),
        (names.IntegrationName, pb.Integration, "INTEGRATION_"),
        (names.AxisName, pb.Axis, "AXIS_"),
        (names.DataTypeName, pb.DataType, "DATA_TYPE_"),
        (names.SpanPart, pb.SpanPart, "SPAN_PART_"),
        (names.PoolingName, pb.Pooling, "POOLING_"),
    ],
)
def test_names_are_the_contracts(literal: Any, enum: Any, prefix: str) -> None:
    expected = [name.removeprefix(prefix).lower() for name, number in enum.items() if number]
    assert list(get_args(literal)) == expected


def everything() -> list[Message]:
    """Requests that say all there is to say."""
    everywhere = sonde.site("neuron", layers=1, units=[2], positions=range(3), stack="decoder")
    edits = [
        sonde.scale(everywhere, 0.5),
        sonde.replace(sonde.residual(layer=0, from_position=3), 1.0),
        sonde.add(everywhere, [1.0]),
        sonde.multiply(everywhere, [1.0]),
        sonde.patch(everywhere, [0, "another"], source_positions=[1], source_layer=2),
        sonde.noise(everywhere, 0.1, seed=3),
        sonde.project_out(everywhere, [1.0]),
        sonde.knockout(sonde.site("attention_scores", layers=1), [0]),
    ]
    targets = [(" Paris", " Rome"), (1, 2)]
    options = {"targets": targets, "position": -1, "dry_run": True}
    readout = options | {
        "kl_divergence": True,
        "activations": [everywhere],
        "generation": sonde.Generation(
            5, 0.7, 2, True, 0.9, ["a", "b"], 3, True, activations=[sonde.residual(layer=1)], changed_only=True
        ),
        "sources": [sonde.Prompt([1, 2], image=b"png")],
    }
    tracing = {"replace": True, "components": "mlp_out", "window": 3, "layers": 1, "positions": 2, "per_sample": True}
    return [
        intervention_of([edits], **readout),
        intervention_of(sonde.sweep(edits[0], together="unit", layer_window=3, always=edits[1])),
        trace_of(**options),  # type: ignore[arg-type]
        trace_of(sonde.TokenProbability(gradient_norms=True, metric="logit")),
        trace_of(sonde.CausalTracing(subject="T", deviations=2.0, samples=3, seed=4, **tracing)),  # type: ignore[arg-type]
        trace_of(sonde.CausalTracing(subject=[1], standard_deviation=0.1)),
        trace_of(sonde.CausalTracing(subject=[1], noise=np.zeros((1, 1, 4)))),
        trace_of(sonde.CausalTracing(counterfactual="other")),
        trace_of(sonde.AttributionPatching("other", ["mlp_out"], 5, "probability", 3)),
        trace_of(sonde.AttributionPatching("other", "key", recompute_softmax=True, drop_layers=True)),
        trace_of(sonde.AttributionPatching("other", edges=7)),
        trace_of(sonde.AttributionPatching("other", edges="all", integration="activations", integration_steps=5)),
        trace_of(sonde.Activations(everywhere)),
        *about_cases(),
        *(trace_of(asked["method"]) for kind, _, asked in QUESTIONS.values() if kind == "trace"),
        *(intervention_of(given[1], given[0]) for kind, given, _ in QUESTIONS.values() if kind == "intervene"),
    ]


def about_cases() -> list[Message]:
    """Requests about datasets, conversations and named positions."""
    spans = {"subject": ("The", 1), "end": [-1, -2]}
    chat = sonde.Chat(
        [("system", "be kind"), {"role": "user", "content": "hi"}], add_generation_prompt=True, spans=spans
    )
    going_on = sonde.Chat([("user", "a"), ("assistant", "b")], continue_final_message=True)
    case = sonde.Case(sonde.Prompt(chat), sources=[going_on], targets=[" Paris"], group="one")
    named = sonde.residual(layer=1, position=["subject.last", sonde.span("user[0]", "next")])
    later = sonde.residual(layer=1, from_position="subject")
    cut = sonde.knockout(sonde.site("attention_scores", layers=1, positions="end"), "subject")
    edits = [sonde.patch(named, 0, source_positions="subject.last"), sonde.add(later, 1.0), cut]
    asked = {"data_type": "bfloat16", "pooling": "mean", "reduce": "mean", "largest": 5, "position": "subject.last"}
    methods: list[Method[Any]] = [
        sonde.CausalTracing(subject=sonde.span("subject"), positions=["first", "subject"]),
        sonde.AttributionPatching(components="mlp_out", positions="subject"),
        sonde.TokenProbability(positions="subject"),
        sonde.TokenProbability(positions=[0, -1]),
    ]
    questions = [
        _signatures.trace([case, case], method=sonde.Activations(named), **asked),  # type: ignore[call-overload]
        _signatures.intervene([case], [edits], activations=named, **asked),  # type: ignore[call-overload]
        *(_signatures.trace(sonde.Cases([case]), method=method) for method in methods),
    ]
    return [question.asking.request(None) for question in questions]


def fields_of(descriptor: Descriptor, seen: set[str]) -> Iterable[FieldDescriptor]:
    if descriptor.full_name not in seen:
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            yield field
            if field.message_type is not None:
                yield from fields_of(field.message_type, seen)


def set_fields(message: Message) -> Iterable[str]:
    for field, value in message.ListFields():
        yield field.full_name
        if field.message_type is not None:
            for entry in value if isinstance(value, Iterable) else [value]:
                yield from set_fields(entry)


def test_every_field_of_a_request_can_be_reached() -> None:
    seen: set[str] = set()
    wanted = {
        field.full_name
        for request in (pb.TraceRequest, pb.InterveneRequest)
        for field in fields_of(request.DESCRIPTOR, seen)
    }
    reached = {name for request in everything() for name in set_fields(request)}
    assert wanted - reached == set()


def test_prompts_are_text_or_ids() -> None:
    assert trace_of(prompt="a b").prompt == pb.Prompt(text="a b")
    for ids in ([1, 2], (1, 2), np.array([1, 2]), np.array([[1, 2]], np.int32), sonde.Prompt([1, 2])):
        assert trace_of(prompt=ids).prompt == pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2]))


@pytest.mark.parametrize("prompt", [[0.5], np.zeros((2, 3), int), [2**40], [[1], [1, 2]], "\ud800", 3])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match="prompt"):
        trace_of(prompt=prompt)


def test_targets_are_texts_ids_and_pairs() -> None:
    request = trace_of(targets=[" Paris", 3, (" Paris", 4), sonde.Target(np.int64(5), " Rome")])
    assert list(request.targets) == [
        pb.Target(text=" Paris"),
        pb.Target(id=3),
        pb.Target(text=" Paris", contrast_id=4),
        pb.Target(id=5, contrast_text=" Rome"),
    ]
    assert list(trace_of(targets=" Paris").targets) == [pb.Target(text=" Paris")]
    assert list(trace_of(targets=np.array([1, 2])).targets) == [pb.Target(id=1), pb.Target(id=2)]


def test_a_list_keeps_what_is_together() -> None:
    a, b = sonde.scale(sonde.neuron(layer=1, unit=2), 0.0), sonde.scale(sonde.head(layer=1, unit=0), 0.0)
    assert [len(i.edits) for i in intervention_of([a, [a, b]]).list.interventions] == [1, 2]
    assert intervention_of(a) == intervention_of([a]) == intervention_of([[a]])
    assert intervention_of([]).WhichOneof("plan") == "list"


def test_zero_is_not_unset() -> None:
    request = intervention_of(sonde.scale(sonde.residual(layer=0, from_position=0), 0.0), position=0)
    edit = request.list.interventions[0].edits[0]
    assert edit.WhichOneof("operation") == "scale"
    assert edit.site.HasField("from_position")
    assert list(edit.site.layers) == [0]
    assert request.readout.HasField("position")
    gaussian = trace_of(sonde.CausalTracing(subject="x", deviations=0.0, seed=0)).causal_tracing.gaussian
    assert gaussian.WhichOneof("scale") == "deviations"
    assert gaussian.HasField("seed")


def test_prompts_of_patches_join_the_sources_once() -> None:
    site = sonde.residual(layer=1)
    plan = [sonde.patch(site, 0), sonde.patch(site, "b"), sonde.patch(site, ["b", sonde.Prompt([1])])]
    request = intervention_of(plan, sources=["a"])
    assert [list(i.edits[0].patch.sources) for i in request.list.interventions] == [[0], [1], [1, 2]]
    assert len(request.sources) == 3


def test_a_sweep_takes_its_axes_from_either_place() -> None:
    here = sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[3], units=range(2), positions=[-1])
    there = sonde.sweep(sonde.scale(sonde.neuron(layer=3, unit=[0, 1], position=-1), 0.0))
    assert intervention_of(here) == intervention_of(there)
    with pytest.raises(sonde.InvalidRequest, match="layers"):
        sonde.sweep(sonde.scale(sonde.neuron(layer=3), 0.0), layers=[3])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: sonde.neuron(layer=[]), "layers"),
        (lambda: sonde.neuron(layer=1.5), "layers"),  # type: ignore[arg-type]
        (lambda: sonde.neuron(layer=True), "layers"),
        (lambda: sonde.neuron(unit=2**31), "units"),
        (lambda: sonde.site("nowhere"), "component"),  # type: ignore[arg-type]
        (lambda: sonde.residual(layer=1, at="after"), "at"),  # type: ignore[arg-type]
        (lambda: sonde.residual(position=1, from_position=1), "from_position"),
        (lambda: sonde.patch(sonde.residual(layer=1), []), "sources"),
        (lambda: sonde.sweep(sonde.scale(sonde.head(), 0), together="head"), "together"),  # type: ignore[arg-type]
        (lambda: sonde.CausalTracing(subject="a", deviations=1.0, standard_deviation=1.0), "standard_deviation"),
        (lambda: sonde.CausalTracing(subject="a", seed=1, noise=[0.0]), "noise"),
        (lambda: sonde.CausalTracing(counterfactual="b", samples=3), "noise"),
        (lambda: sonde.CausalTracing(components="nowhere"), "components"),  # type: ignore[arg-type]
        (lambda: sonde.TokenProbability(metric="loss"), "metric"),  # type: ignore[arg-type]
        (sonde.Activations, "activations"),
        (lambda: trace_of("rome"), "method"),  # type: ignore[arg-type]
        (lambda: trace_of(targets=[(1, 2, 3)]), "targets"),
        (lambda: trace_of(targets=[1.5]), "targets"),
        (lambda: trace_of(position=1.5), "position"),
        (lambda: intervention_of(["edit"]), "edit"),
        (lambda: intervention_of([], sources="prompt"), "sources"),
        (lambda: intervention_of([], activations=["neuron"]), "site"),
        (lambda: intervention_of([], generation=sonde.Generation(2**40)), "max_new_tokens"),
        (lambda: intervention_of(sonde.scale(sonde.head(layer=1), "much")), "scale"),  # type: ignore[arg-type]
        (lambda: intervention_of(sonde.noise(sonde.head(layer=1), 1.0, seed=2**70)), "seed"),
    ],
)
def test_what_is_wrong_by_itself_is_refused_at_once(make: Any, field: str) -> None:
    with pytest.raises(sonde.InvalidRequest) as caught:
        make()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_gradients_are_taken_where_the_program_says() -> None:
    given: list[names.IntegrationName | None] = [None, "activations", "ends"]
    asked = [trace_of(sonde.AttributionPatching("other", "mlp_out", integration=one)) for one in given]
    wanted = [pb.INTEGRATION_UNSPECIFIED, pb.INTEGRATION_ACTIVATIONS, pb.INTEGRATION_ENDS]
    assert [one.attribution_patching.integration for one in asked] == wanted
    with pytest.raises(sonde.InvalidRequest, match="integration: expected one of activations, ends, got 'inputs'"):
        sonde.AttributionPatching("other", "mlp_out", integration="inputs")  # type: ignore[arg-type]


def test_edges_are_all_or_so_many() -> None:
    asked = [trace_of(sonde.AttributionPatching("other", edges=given)) for given in (None, "all", 3)]
    assert [one.attribution_patching.HasField("edges") for one in asked] == [False, True, True]
    assert [one.attribution_patching.edges.top for one in asked] == [0, 0, 3]
    for wrong in (0, -1):
        with pytest.raises(sonde.InvalidRequest, match="edges"):
            sonde.AttributionPatching("other", edges=wrong)
