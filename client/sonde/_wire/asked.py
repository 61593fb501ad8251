"""Requests as records that a result keeps: plain values in place of messages, and long arrays in short."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sonde._answers.requests import LazyContent, Request
from sonde._version import __version__
from sonde._wire.tensors import from_tensor
from sonde.v1 import inspection_pb2 as pb

MOST_VALUES: Final = 64
"""The most numbers of an array that is kept with its values."""


def record(request: pb.TraceRequest | pb.InterveneRequest, labels: Sequence[str] = ()) -> Request:
    """What a request asks, and that it is asked now. The request must stay as it is sent."""
    call = "trace" if isinstance(request, pb.TraceRequest) else "intervene"
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Request(call, LazyContent(lambda: _plain(request)), tuple(labels), __version__, now)


def _plain(message: Message) -> dict[str, Any]:
    """The fields that are set, by the names of the contract."""
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: _value(field, entry) for key, entry in value.items()}
    if isinstance(value, str | bytes | Message | bool | int | float):
        return _value(field, value)
    return [_value(field, entry) for entry in value]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, pb.Tensor):
        return _tensor(value)
    if isinstance(value, Message):
        return _plain(value)
    if isinstance(value, bytes):
        return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if field.enum_type is not None:
        # COMPONENT_HEAD_OUT, of Component, is head_out.
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field.enum_type.name).upper()
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name.removeprefix(f"{prefix}_").lower()
    return value


def _tensor(tensor: pb.Tensor) -> dict[str, Any]:
    array = from_tensor(tensor)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(array.astype(np.float64).reshape(-1)))
    known = {
        "shape": list(array.shape),
        "data_type": pb.DataType.Name(tensor.data_type).removeprefix("DATA_TYPE_").lower(),
        "norm": norm,
        "sha256": hashlib.sha256(tensor.data).hexdigest(),
    }
    return {**known, "values": array.reshape(-1).tolist()} if array.size <= MOST_VALUES else known
