"""The contract's names as they are written in Python: `"residual_post"` for `COMPONENT_RESIDUAL_POST`.

The literals are spelled out for type checkers and editors. A test checks that they match the contract.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from sonde._ask.given import shown
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

ComponentName: TypeAlias = Literal[
    "token_embedding",
    "residual_pre",
    "residual_mid",
    "residual_post",
    "attention_out",
    "mlp_out",
    "head_out",
    "query",
    "key",
    "value",
    "attention_scores",
    "attention_pattern",
    "neuron",
    "final_norm",
    "logits",
]
StackName: TypeAlias = Literal["decoder", "text_encoder", "vision_encoder"]
MetricName: TypeAlias = Literal["logit", "log_probability", "probability"]
IntegrationName: TypeAlias = Literal["activations", "ends"]
AxisName: TypeAlias = Literal["layer", "unit", "position"]
DataTypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int32", "int64"]
SpanPart: TypeAlias = Literal["first", "middle", "last", "next", "further"]
PoolingName: TypeAlias = Literal["mean", "max"]
ReduceName: TypeAlias = Literal["mean"]
FinishReason: TypeAlias = Literal["length", "end_token", "stop"]

WITHOUT_LAYER: Final[frozenset[ComponentName]] = frozenset({"token_embedding", "final_norm", "logits"})
_BY_HEAD: Final = ("position", "head", "entry")
_BY_PAIR: Final = ("head", "query", "key")
COMPONENT_AXES: Final[Mapping[ComponentName, tuple[str, ...]]] = {
    **dict.fromkeys(get_args(ComponentName), ("position", "unit")),
    "head_out": _BY_HEAD,
    "query": _BY_HEAD,
    "key": _BY_HEAD,
    "value": _BY_HEAD,
    "attention_scores": _BY_PAIR,
    "attention_pattern": _BY_PAIR,
    "logits": ("position", "token"),
}
"""The axes of a component's activations in one layer."""

COMPONENTS: Final[Mapping[ComponentName, pb.Component.ValueType]] = {
    name: pb.Component.Value(f"COMPONENT_{name.upper()}") for name in get_args(ComponentName)
}
STACKS: Final[Mapping[StackName, pb.Stack.ValueType]] = {
    name: pb.Stack.Value(f"STACK_{name.upper()}") for name in get_args(StackName)
}
METRICS: Final[Mapping[MetricName, pb.Metric.ValueType]] = {
    name: pb.Metric.Value(f"METRIC_{name.upper()}") for name in get_args(MetricName)
}
INTEGRATIONS: Final[Mapping[IntegrationName, pb.Integration.ValueType]] = {
    name: pb.Integration.Value(f"INTEGRATION_{name.upper()}") for name in get_args(IntegrationName)
}
AXES: Final[Mapping[AxisName, pb.Axis.ValueType]] = {
    name: pb.Axis.Value(f"AXIS_{name.upper()}") for name in get_args(AxisName)
}
DATA_TYPES: Final[Mapping[DataTypeName, pb.DataType.ValueType]] = {
    name: pb.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in get_args(DataTypeName)
}
ACTIVATION_TYPES: Final[tuple[DataTypeName, ...]] = ("float32", "bfloat16", "float16")
"""The types in which activations can be sent."""
SPAN_PARTS: Final[Mapping[SpanPart, pb.SpanPart.ValueType]] = {
    name: pb.SpanPart.Value(f"SPAN_PART_{name.upper()}") for name in get_args(SpanPart)
}
POOLINGS: Final[Mapping[PoolingName, pb.Pooling.ValueType]] = {
    name: pb.Pooling.Value(f"POOLING_{name.upper()}") for name in get_args(PoolingName)
}
COMPONENT_NAMES: Final[Mapping[pb.Component.ValueType, ComponentName]] = {
    number: name for name, number in COMPONENTS.items()
}
STACK_NAMES: Final[Mapping[pb.Stack.ValueType, StackName]] = {number: name for name, number in STACKS.items()}

_Name = TypeVar("_Name", bound=str)


def check_name(given: _Name, known: Iterable[_Name], field: str) -> _Name:
    """Return `given` if it is one of the known names.

    Raises:
        InvalidRequest: if it is not; the message lists the known names.
    """
    choices = tuple(known)
    named: object = given
    if not isinstance(named, str) or named not in choices:
        raise InvalidRequest.at(field, unknown_name(given, choices))
    return given


def unknown_name(given: object, choices: Sequence[str]) -> str:
    """Say which names were expected, and which of them `given` resembles."""
    listed = f"one of {', '.join(choices)}" if len(choices) > 1 else "".join(choices)
    said = f"expected {listed or 'no name'}, got {shown(given)}"
    if len(choices) < 2 or not isinstance(given, str) or not given:
        return said
    alike = [name for name in choices if name.startswith(given)] or get_close_matches(given, choices, 1)
    return f"{said}; did you mean {' or '.join(alike)}?" if alike else said


def component_name(number: int) -> ComponentName | str:
    """Return the name of a component in an answer; numbers that this client does not know become `"component_17"`."""
    return COMPONENT_NAMES.get(pb.Component.ValueType(number), f"component_{number}")
