"""Spans: names for parts of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex, TypeAlias

from sonde._ask.given import refusal
from sonde._ask.indices import index, indices

_EXPECTED: Final = "a part of the text, (text, occurrence), or positions"


@dataclass(frozen=True, slots=True)
class Span:
    """Where a span is: a part of the prompt's text, or positions."""

    where: str | tuple[int, ...]
    """A text that consists of whole tokens (spaces at its ends do not matter), or the positions."""
    occurrence: int | None = None
    """Which occurrence of the text, from 0; negative ones count from the last; None means the first."""

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", indices(self.where, "spans"))
            if self.occurrence is not None:
                raise refusal("spans", "an occurrence only with text", self.occurrence)
        if self.occurrence is not None:
            object.__setattr__(self, "occurrence", index(self.occurrence, "spans"))


SpanLike: TypeAlias = str | tuple[str, SupportsIndex] | Sequence[SupportsIndex] | Span
"""A part of the text, `(text, occurrence)`, positions, or a `Span`."""
Spans: TypeAlias = Mapping[str, SpanLike]
"""Spans by their names."""


def as_spans(given: Spans | None) -> dict[str, Span]:
    """Return spans by their names.

    Raises:
        InvalidRequest: if a name is not text, or an entry says no place.
    """
    if given is None:
        return {}
    names: object = given
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names):
        raise refusal("spans", f"names, each with {_EXPECTED}", given)
    return {name: _as_span(entry) for name, entry in given.items()}


def _as_span(given: SpanLike) -> Span:
    if isinstance(given, Span):
        return given
    if isinstance(given, str):
        return Span(given)
    entries: Any = given
    if isinstance(entries, tuple | list) and entries and isinstance(entries[0], str):
        if len(entries) != 2:
            raise refusal("spans", _EXPECTED, given)
        return Span(entries[0], index(entries[1], "spans"))
    return Span(indices(entries, "spans"))
