"""Arithmetic with whole results: their mean over parts of a dataset, their deviation, their standard error.

Every number of a result is treated alike: a function is applied to the arrays that stand at the same place in several
results of one kind. Labels, integers and texts are those of the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._answers.predictions import TokenPrediction
from sonde._answers.requests import Request

_Result = TypeVar("_Result")
_Doubles: TypeAlias = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Results of one kind, whose numbers are means, standard deviations (divisor: the count) and counts."""

    mean: Any
    deviation: Any
    count: Any


def over_numbers(function: Callable[..., _Doubles], first: _Result, *others: Any) -> _Result:
    """A result like the first, in which every number is the function of the numbers at its place in all of them."""
    return cast("_Result", _over(function, first, others))


def _over(  # noqa: PLR0911 - one per kind
    function: Callable[..., _Doubles], value: Any, others: tuple[Any, ...]
) -> Any:
    if isinstance(value, np.ndarray):
        return _applied(function, value, others) if value.dtype.kind == "f" else value
    if isinstance(value, float):
        return float(function(np.float64(value), *map(np.float64, others)))
    if isinstance(value, Captured):
        sites = [value.site(i) for i in value]
        pairs = [(value.axes(i), _over(function, value[i], tuple(other[i] for other in others))) for i in value]
        return Captured(sites, pairs)
    if is_dataclass(value) and not isinstance(value, type | TokenPrediction | Request):
        names = [field.name for field in fields(value) if field.init]
        parts = {
            name: _over(function, getattr(value, name), tuple(getattr(other, name) for other in others))
            for name in names
        }
        return replace(value, **parts)
    if isinstance(value, Mapping):
        if all(isinstance(entry, str) for entry in value.values()):
            return value  # Texts of tokens, which differ from case to case.
        return {key: _over(function, entry, tuple(other[key] for other in others)) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, str):
        return type(value)(_over(function, *_split(entries)) for entries in zip(value, *others, strict=True))
    return value


def _split(entries: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    return entries[0], entries[1:]


def _applied(function: Callable[..., _Doubles], value: npt.NDArray[Any], others: tuple[Any, ...]) -> Any:
    return function(value.astype(np.float64), *(np.asarray(other, np.float64) for other in others))


def joined(first: Moments, second: Moments) -> Moments:
    """The moments over two parts of a dataset, exactly: Chan, Golub and LeVeque 1979."""
    both = (*first, *second)
    return Moments(
        over_numbers(_joined_mean, *both),
        over_numbers(_joined_deviation, *both),
        over_numbers(lambda one, other: one + other, first.count, second.count),
    )


def _joined_mean(
    mean: _Doubles, _: _Doubles, count: _Doubles, mean_2: _Doubles, __: _Doubles, count_2: _Doubles
) -> _Doubles:
    total = count + count_2
    share = np.divide(count_2, total, out=np.zeros_like(total), where=total > 0)
    return mean + (mean_2 - mean) * share


def _joined_deviation(
    mean: _Doubles,
    deviation: _Doubles,
    count: _Doubles,
    mean_2: _Doubles,
    deviation_2: _Doubles,
    count_2: _Doubles,
) -> _Doubles:
    total = count + count_2
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    between = (mean_2 - mean) ** 2 * count * count_2 * scale
    root: _Doubles = np.sqrt((count * deviation**2 + count_2 * deviation_2**2 + between) * scale)
    return root


def finished(moments: Moments) -> Moments:
    """The moments as float32, with NaN where there are no values."""

    def known(values: _Doubles, count: _Doubles) -> Any:
        return np.where(count > 0, values, np.nan).astype(np.float32)

    return Moments(
        over_numbers(known, moments.mean, moments.count),
        over_numbers(known, moments.deviation, moments.count),
        over_numbers(lambda count: np.asarray(count, np.float32), moments.count),
    )


def standard_error(deviation: _Result, count: _Result) -> _Result:
    """The standard error of means: the unbiased deviation over the root of the count; NaN for fewer than two values."""

    def error(spread: _Doubles, number: _Doubles) -> Any:
        known = np.where(number > 1, number - 1, np.nan)
        return (spread / np.sqrt(known)).astype(np.float32)

    return over_numbers(error, deviation, count)
