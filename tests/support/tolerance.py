"""How near is near. A comparison that needs more than this has found something: look for the reason."""

from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT32 = 1e-5
"""Relative and absolute, for float32 against another order of the same float32 operations."""


def assert_close(actual: npt.ArrayLike, expected: npt.ArrayLike, what: str = "") -> None:
    """Equal within FLOAT32, shapes included."""
    first, second = np.asarray(actual), np.asarray(expected)
    assert first.shape == second.shape, f"{what}: shape {first.shape}, expected {second.shape}"
    np.testing.assert_allclose(first, second, rtol=FLOAT32, atol=FLOAT32, err_msg=what)


def assert_same_ranking(
    ids: npt.NDArray[Any], values: npt.NDArray[Any], everything: npt.NDArray[Any], what: str = ""
) -> None:
    """Top tokens: these ids have these values in `everything` [V], and no other token has more."""
    assert len(set(ids.tolist())) == len(ids), f"{what}: a token twice"
    assert_close(values, everything[ids], what)
    assert_close(values, np.sort(everything)[::-1][: len(ids)], what)


def assert_near(actual: npt.ArrayLike, expected: npt.ArrayLike, what: str = "") -> None:
    """Equal within float32's rounding of the largest of them, for sums of many products that cancel."""
    first, second = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert first.shape == second.shape, f"{what}: shape {first.shape}, expected {second.shape}"
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(second).max()), err_msg=what)
