"""Cuts large parts of an answer, and joins what can be joined, so that no message exceeds its size."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from ..questions.answers import Attributions, EdgeAttributions, Floats, LayerReadings, Readings, RestorationGrid

MESSAGE_BYTES = 1 << 20
_Part = TypeVar("_Part", Readings, LayerReadings, RestorationGrid, EdgeAttributions)

# A part is at most half of a message: its estimate leaves room for the texts of unusually long tokens.
PART_BYTES = MESSAGE_BYTES // 2
# What a token id costs beside its numbers when its text goes along: the text, its key and their framing.
TOKEN_TEXT_BYTES = 24


def cut_readings(readings: Readings) -> Iterator[Readings]:
    """Slices of whole runs."""
    count = len(readings.log_probabilities)
    for start, stop in _spans(count, _row_bytes(readings, count)):
        yield _rows(readings, start, stop, offset=readings.offset + start)


def join_readings(parts: Sequence[Readings]) -> Readings:
    """Consecutive slices in one."""
    joined: dict[str, Any] = {
        one.name: np.concatenate([getattr(part, one.name) for part in parts])
        for one in fields(Readings)
        if one.name != "offset" and getattr(parts[0], one.name) is not None
    }
    return replace(parts[0], **joined)


def cut_layers(layers: LayerReadings) -> Iterator[LayerReadings]:
    """Slices of whole depths."""
    count = len(layers.depths)
    for start, stop in _spans(count, _row_bytes(layers, count)):
        yield _rows(layers, start, stop, depths=layers.depths[start:stop])


def cut_grid(grid: RestorationGrid) -> Iterator[RestorationGrid]:
    """Slices of whole positions; where one position alone is too large, of its layers."""
    positions = len(grid.positions)
    for start, stop in _spans(positions, _row_bytes(grid, positions)):
        part = _rows(grid, start, stop, positions=grid.positions[start:stop])
        layers = len(grid.layers)
        if layers < 2 or stop - start > 1:
            yield part
            continue
        for low, high in _spans(layers, _row_bytes(part, layers)):
            arrays: dict[str, Any] = {name: values[:, low:high] for name, values in _arrays(part)}
            yield replace(part, layers=grid.layers[low:high], **arrays)


def cut_attributions(part: Attributions) -> Iterator[Attributions]:
    """Slices of whole positions, layer by layer."""
    layers, positions = part.estimates.shape[:2]
    for layer in range(layers):
        for start, stop in _spans(positions, part.estimates[layer].nbytes // max(1, positions)):
            yield replace(
                part,
                layers=part.layers[layer : layer + 1],
                positions=part.positions[start:stop],
                estimates=part.estimates[layer : layer + 1, start:stop],
            )


def cut_edges(edges: EdgeAttributions) -> Iterator[EdgeAttributions]:
    """Slices of whole edges."""
    count = len(edges.estimates)
    for start, stop in _spans(count, _row_bytes(edges, count)):
        yield _rows(edges, start, stop, offset=edges.offset + start)


def cut_values(values: Floats) -> Iterator[tuple[int, Floats]]:
    """An activation's values row by row, as (offset, slice)."""
    flat = values.reshape(-1)
    step = PART_BYTES // flat.itemsize
    for start in range(0, max(1, len(flat)), step):
        yield start, flat[start : start + step]


def size_of(part: Readings) -> int:
    """About the bytes that a slice takes in a message."""
    count = len(part.log_probabilities)
    return count * _row_bytes(part, count)


def _arrays(part: object) -> Iterator[tuple[str, Floats]]:
    for one in fields(part):  # type: ignore[arg-type]
        value = getattr(part, one.name)
        if isinstance(value, np.ndarray):
            yield one.name, value


def _rows(part: _Part, start: int, stop: int, **changes: Any) -> _Part:
    changes |= {name: values[start:stop] for name, values in _arrays(part)}
    return replace(part, **changes)


def _row_bytes(part: object, rows: int) -> int:
    total = 0
    for name, values in _arrays(part):
        total += values.nbytes + (values.size * TOKEN_TEXT_BYTES if name == "top_tokens" else 0)
    return total // max(1, rows)


def _spans(count: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, PART_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield start, min(count, start + step)
