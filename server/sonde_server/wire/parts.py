"""Cuts large parts of an answer, so that no message exceeds its size."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from ..questions.answers import Answer, Floats

MESSAGE_BYTES = 1 << 20
Part = TypeVar("Part", bound=Answer)

# A part is at most half of a message: its estimate leaves room for the texts of unusually long tokens.
PART_BYTES = MESSAGE_BYTES // 2
# What a token id takes beside its numbers when its text is sent too: the text, its key and their framing.
TOKEN_TEXT_BYTES = 24


def spans(count: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """The rows, from start to before stop, of the pieces into which `count` rows are cut."""
    step = max(1, PART_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield start, min(count, start + step)


def rows(part: Part, start: int, stop: int, **changes: Any) -> Part:
    """Rows of every array of a part: along the first axis, which all of them share. `changes`: its other fields."""
    changes |= {name: values[start:stop] for name, values in arrays(part)}
    return replace(part, **changes)


def arrays(part: Answer) -> Iterator[tuple[str, Floats]]:
    """The arrays of a part, by name."""
    for one in fields(part):
        value = getattr(part, one.name)
        if isinstance(value, np.ndarray):
            yield one.name, value


def row_bytes(part: Answer, count: int) -> int:
    """About the bytes that one of a part's `count` rows takes in a message."""
    total = 0
    for name, values in arrays(part):
        total += values.nbytes + (values.size * TOKEN_TEXT_BYTES if name == "top_tokens" else 0)
    return total // max(1, count)
