"""What a person gives for a number, an array, a choice or several things, whichever library it comes from."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from sonde.errors import InvalidRequest

_Entry = TypeVar("_Entry")
_SHOWN: Final = 80
"""How many characters of a value an error repeats."""
_WHOLE: Final = (str, bytes, bytearray, memoryview, Mapping)
"""What has entries, none of which anybody means."""
_WITHOUT_NUMPY: Final = ("bfloat16", "float8")
"""How the types of a tensor begin that numpy lacks; each number of them is one of float32."""


def shown(given: object) -> str:
    """What was given, on one short line: arrays and tensors by their type and shape."""
    dtype, shape = getattr(given, "dtype", None), getattr(given, "shape", None)
    if dtype is not None and isinstance(shape, tuple) and shape != ():
        return f"{type(given).__name__} of {dtype} {list(shape)}"
    text = " ".join(repr(given).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def refusal(name: str, expected: str, given: object) -> InvalidRequest:
    """The error for an argument that is not what it has to be."""
    return InvalidRequest.at(name, f"expected {expected}, got {shown(given)}")


def several(given: Iterable[_Entry], name: str, expected: str) -> tuple[_Entry, ...]:
    """The entries of a list, an array, a generator or anything else with entries.

    Raises:
        InvalidRequest: for what has none, an array without axes included, and for text, bytes and mappings.
    """
    whole: object = given
    if not isinstance(whole, Iterable) or isinstance(whole, _WHOLE) or getattr(whole, "ndim", 1) == 0:
        raise refusal(name, expected, given)
    return tuple(given)


def flag(given: object, name: str) -> bool:
    """True or False.

    Raises:
        InvalidRequest: for anything else.
    """
    if not isinstance(given, bool | np.bool_):
        raise refusal(name, "True or False", given)
    return bool(given)


def number(given: object, name: str) -> float:
    """A real number: of Python, numpy or a tensor library, an array without axes included.

    Raises:
        InvalidRequest: for anything else, booleans included.
    """
    found = array(given, name, "a number")
    if found.ndim or found.dtype == np.bool_ or not is_real(found):
        raise refusal(name, "a number", given)
    return float(found)


def is_real(found: npt.NDArray[Any]) -> bool:
    """Whether an array has real numbers, those of the `ml_dtypes` package included, or booleans."""
    return found.dtype.kind in "fiub" or found.dtype.name.startswith(_WITHOUT_NUMPY)


def array(given: Any, name: str, expected: str = "an array of numbers") -> npt.NDArray[Any]:
    """What numpy makes of lists, arrays and tensors; the caller judges its type.

    A tensor is taken without its gradient, from its device. Types of 8 and 16 bits that numpy lacks become float32.

    Raises:
        InvalidRequest: for what numpy cannot read, as lists of different lengths, and for masked entries.
    """
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InvalidRequest.at(name, f"expected {expected}, got masked entries")
    try:
        found = np.asarray(_without_tensors(given))
        if found.dtype == object and all(isinstance(entry, numbers.Real) for entry in found.flat):
            # Python's own numbers in a column of pandas.
            found = np.asarray(found.tolist())
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidRequest.at(name, f"expected {expected}, got {shown(given)}: {error}") from None
    return found


def _without_tensors(given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [_without_tensors(entry) for entry in given]
    if not hasattr(given, "detach"):
        return given
    tensor = given.detach().cpu()
    narrow = str(tensor.dtype).removeprefix("torch.").startswith(_WITHOUT_NUMPY)
    return (tensor.float() if narrow else tensor).numpy()
