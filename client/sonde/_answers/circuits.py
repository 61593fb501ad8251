"""How much of a prediction circuits carry, and what examples predict that are put in each other's places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sonde._arrays import Floats, Label


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What the unchanged runs of all examples predict, for one case's targets."""

    log_probabilities: Floats
    """[example, target]"""
    logits: Floats
    """[example, target]"""
    kl_divergences: Floats | None
    """[example]: KL(case || example) in nats; None unless requested."""


_ROUNDING: Final = 16 * float(np.finfo(np.float32).eps)
"""Measures that differ by less than this share of their size are equal as far as float32 tells."""


def faithful(effects: Floats, sizes: Sequence[Label], whole: float) -> Floats:
    """(M - M none) / (M all - M none) for each size, from effects, which are M - M all.

    Args:
        effects: [size]
        sizes: how many each run keeps.
        whole: the size of M all, which tells how far rounding can move an effect.

    Raises:
        ValueError: if no size is 0, or if M all and M none are the same but for rounding.
    """
    if 0 not in sizes:
        message = f"expected a size of 0 among the sizes, whose run the others are compared with, got {list(sizes)}"
        raise ValueError(message)
    none = effects[list(sizes).index(0)]
    if abs(none) <= _ROUNDING * abs(whole):
        raise ValueError("expected a measure that differs with nothing kept from the unchanged run, got the same")
    carried: Floats = 1 - effects / none
    return carried


def share(sizes: Sequence[Label], listed: int) -> Floats:
    """Which share of what is listed each size is.

    Raises:
        ValueError: if no run keeps all: the area would end before 1.
    """
    if listed not in sizes:
        message = f"expected the size {listed}, all that were listed, among the sizes, got {list(sizes)}"
        raise ValueError(message)
    return np.array(sizes, np.float32) / np.float32(max(listed, 1))


def area(shares: Floats, values: Floats) -> float:
    """The area under values over shares, by the trapezoidal rule."""
    order = np.argsort(shares, kind="stable")
    at, over = shares[order], values[order]
    return float(np.sum((over[1:] + over[:-1]) / 2 * np.diff(at)))
