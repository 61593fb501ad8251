"""Encoding of numpy arrays as the contract's Tensor, and decoding."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sonde._arrays import BFLOAT16, widened
from sonde._ask.given import array as array_of
from sonde._ask.given import is_real, refusal
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

# The contract is little-endian on every machine.
_WIRE_TYPES: Final[Mapping[int, np.dtype[Any]]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
}


def to_tensor(values: npt.ArrayLike, field: str) -> pb.Tensor:
    """Encode anything that numpy can convert to an array of numbers.

    float16 stays float16 and bfloat16 (from the `ml_dtypes` package) stays bfloat16; all other numbers become float32,
    the type in which the server computes edits.

    Raises:
        InvalidRequest: if `values` is not a regular array of real numbers.
    """
    array = array_of(values, field)
    if array.dtype.name == "bfloat16":
        data_type, wire = pb.DATA_TYPE_BFLOAT16, array.view(np.uint16)
    elif array.dtype == np.float16:
        data_type, wire = pb.DATA_TYPE_FLOAT16, array
    elif is_real(array):
        with np.errstate(over="ignore"):  # Becomes infinity, which the server rejects with its index.
            data_type, wire = pb.DATA_TYPE_FLOAT32, array.astype(np.float32)
    else:
        raise refusal(field, "an array of real numbers", values)
    data = wire.astype(_WIRE_TYPES[data_type], copy=False).tobytes()
    return pb.Tensor(data_type=data_type, shape=array.shape, data=data)


def from_tensor(tensor: pb.Tensor) -> npt.NDArray[np.generic]:
    """Decode to a writable array in the machine's byte order; bfloat16 becomes float32.

    Raises:
        ProtocolError: if the type is not known or the number of bytes does not match the shape.
    """
    return widened(from_tensor_as_sent(tensor))


def from_tensor_as_sent(tensor: pb.Tensor) -> npt.NDArray[Any]:
    """Decode to a writable array in the machine's byte order; bfloat16 stays as it is (see `BFLOAT16`).

    Raises:
        ProtocolError: if the type is not known or the number of bytes does not match the shape.
    """
    wire_type = _WIRE_TYPES.get(tensor.data_type)
    if wire_type is None:
        raise ProtocolError(f"the answer has a tensor of data type {tensor.data_type}, which this client does not know")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape) or math.prod(shape) * wire_type.itemsize != len(tensor.data):
        raise ProtocolError(f"the answer has a tensor of shape {list(shape)} in {len(tensor.data)} bytes")
    array: npt.NDArray[np.generic] = np.frombuffer(tensor.data, dtype=wire_type).reshape(shape)
    native: npt.NDArray[Any] = array.astype(wire_type.newbyteorder("="))
    return native.view(BFLOAT16) if tensor.data_type == pb.DATA_TYPE_BFLOAT16 else native


def floats(tensor: pb.Tensor) -> npt.NDArray[np.float32]:
    """Decode numbers that the contract defines as float32."""
    return from_tensor(tensor).astype(np.float32, copy=False)


def integers(tensor: pb.Tensor) -> npt.NDArray[np.int64]:
    """Decode numbers that the contract defines as integers.

    Raises:
        ProtocolError: if they are not integers.
    """
    array = from_tensor(tensor)
    if array.dtype.kind != "i":
        raise ProtocolError(f"expected integers in the answer, got {array.dtype}")
    return array.astype(np.int64)
