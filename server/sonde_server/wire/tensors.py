"""Tensors: plain little-endian bytes, row by row, to and from numpy."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sonde.v1 import inspection_pb2 as pb

from ..questions.activations import Encoding
from ..questions.edits import Values
from .fields import Reader

MOST_DIMENSIONS = 8
ITEM_SIZES = {pb.DATA_TYPE_FLOAT32: 4, pb.DATA_TYPE_BFLOAT16: 2, pb.DATA_TYPE_FLOAT16: 2}


def decode_tensor(tensor: pb.Tensor, path: str, reader: Reader) -> Values | None:
    """Float32 values of a tensor of any float type; None, with the fault noted, if it is faulty.

    No case has tensors of its own, so each is decoded once, and all cases share its values.

    The bytes are compared with the shape before anything of that shape is allocated.
    """
    return reader.once(path, lambda: _decode(tensor, path, reader))


def decode_integers(tensor: pb.Tensor, path: str, reader: Reader) -> NDArray[np.int32] | None:
    """The values of an int32 tensor, likewise."""
    if not _check_layout(tensor, path, reader, {pb.DATA_TYPE_INT32: 4}):
        return None
    return np.frombuffer(tensor.data, dtype="<i4").reshape(tuple(tensor.shape))


def _decode(tensor: pb.Tensor, path: str, reader: Reader) -> Values | None:
    if not _check_layout(tensor, path, reader, ITEM_SIZES):
        return None
    values = _floats(tensor.data, tensor.data_type).reshape(tuple(tensor.shape))
    finite = np.isfinite(values)
    if not finite.all():
        place = int(np.argmin(finite.reshape(-1)))
        reader.problems.add(
            f"{path}.data", f"expected finite entries, got {values.reshape(-1)[place]} at entry {place}, row by row"
        )
        return None
    return values


def _check_layout(tensor: pb.Tensor, path: str, reader: Reader, sizes: Mapping["pb.DataType.ValueType", int]) -> bool:
    """Whether the bytes of a tensor fit its shape and its type, which must have one of these sizes."""
    size = sizes.get(tensor.data_type)
    if size is None:
        *first, last = (type_name(one) for one in sizes)
        expected = f"{', '.join(first)} or {last}" if first else last
        reader.problems.add(f"{path}.data_type", f"expected {expected}, got {type_name(tensor.data_type)}")
        return False
    shape = tuple(tensor.shape)
    if len(shape) > MOST_DIMENSIONS or any(length < 0 for length in shape):
        reader.problems.add(
            f"{path}.shape",
            f"expected at most {MOST_DIMENSIONS} dimensions, none negative, got {_shape(shape)}",
        )
        return False
    needed = math.prod(shape) * size
    if len(tensor.data) != needed:
        reader.problems.add(
            f"{path}.data",
            f"expected {needed} bytes for {_shape(shape)} of {type_name(tensor.data_type)}, got {len(tensor.data)}",
        )
        return False
    return True


def check_broadcasts(values: Values, shape: Sequence[int], path: str, reader: Reader) -> bool:
    """Whether values broadcast, from the right, against a shape; if not, the fault is noted."""
    fits = values.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(reversed(values.shape), reversed(shape), strict=False)
    )
    if not fits:
        reader.problems.add(
            f"{path}.shape",
            f"expected a shape that broadcasts, from the right, against {_shape(shape)}, the shape of what one run "
            f"selects, got {_shape(values.shape)}",
        )
    return fits


def encode_floats(values: NDArray[np.float32], encoding: Encoding = Encoding.FLOAT32) -> pb.Tensor:
    """Floats in a type that they fit into (`Encoding.beyond`), rounded to the nearest, of two as near to the even."""
    match encoding:
        case Encoding.FLOAT32:
            data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        case Encoding.BFLOAT16:
            # The upper half of a float32. What is added carries into it where the lower half is more than half a step,
            # or exactly half a step above an odd one.
            bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
            data = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").tobytes()
        case Encoding.FLOAT16:
            data = np.ascontiguousarray(values, dtype="<f2").tobytes()
    return pb.Tensor(data_type=pb.DataType.ValueType(encoding), shape=values.shape, data=data)


def encode_integers(values: NDArray[np.int32]) -> pb.Tensor:
    """An int32 tensor."""
    data = np.ascontiguousarray(values, dtype="<i4")
    return pb.Tensor(data_type=pb.DATA_TYPE_INT32, shape=values.shape, data=data.tobytes())


def _floats(data: bytes, data_type: int) -> Values:
    if data_type == pb.DATA_TYPE_BFLOAT16:
        # The upper half of a float32.
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype="<f4" if data_type == pb.DATA_TYPE_FLOAT32 else "<f2").astype(np.float32)


def type_name(data_type: int) -> str:
    """What the contract calls a type."""
    names = {value: name for name, value in pb.DataType.items()}
    return names.get(data_type, str(data_type)).removeprefix("DATA_TYPE_")  # type: ignore[call-overload,no-any-return]


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(length) for length in shape[: 2 * MOST_DIMENSIONS]) + "]"
