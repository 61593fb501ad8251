"""Whether two results are the same, field by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from sonde._answers.captured import Captured

from tests.support.tolerance import assert_close


def assert_same(left: Any, right: Any, where: str = "result", *, exactly: bool = False) -> None:
    """Every field. Numbers to the last digits, which the company in a batch decides, or `exactly`; the rest exactly."""
    assert type(left) is type(right), where
    if isinstance(left, np.ndarray | float):
        first, second = np.asarray(left), np.asarray(right)
        assert first.dtype == second.dtype, where
        if exactly:
            assert first.shape == second.shape, where
            assert first.tobytes() == second.tobytes() or np.array_equal(first, second, equal_nan=True), where
        else:
            assert_close(first, second, where)
    elif dataclasses.is_dataclass(left):
        for field in (one for one in dataclasses.fields(left) if one.compare):
            one, other = getattr(left, field.name), getattr(right, field.name)
            assert_same(one, other, f"{where}.{field.name}", exactly=exactly)
    elif isinstance(left, Captured):
        assert len(left) == len(right), where
        for i, array in left.items():
            assert left.site(i) == right.site(i), where
            assert list(left.axes(i).items()) == list(right.axes(i).items()), where
            assert_same(array, right[i], f"{where}[{i}]", exactly=exactly)
    elif isinstance(left, Mapping):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            assert_same(value, right[key], f"{where}[{key!r}]", exactly=exactly)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{i}]", exactly=exactly)
    else:
        assert left == right, where
