"""Positions by name, so that one request means the same places in prompts of unequal length.

    sonde.span("subject")              every position of the span that is called "subject"
    sonde.span("subject", "last")      its last position

Wherever positions are expected, a name can be written as text: `"subject"`, or with a part of the span, as in
`"subject.last"`. `"first"` and `"last"` (or `"end"`) are those of the whole prompt, and `"all"` is all of its
positions. In a chat, `"user"` is the content of the user's last message, and `"user[0]"` that of the first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, SupportsIndex, TypeAlias, cast

from sonde._ask.given import refusal
from sonde._ask.indices import Indices, index, indices
from sonde._ask.names import SPAN_PARTS, SpanPart, check_name
from sonde.errors import InvalidRequest

_WHOLE: Final[dict[str, SpanPart | None]] = {"all": None, "first": "first", "last": "last", "end": "last"}
"""What is positions of the whole prompt rather than the name of a span."""
_AS_NUMBER: Final[dict[SpanPart | None, int]] = {"first": 0, "last": -1}
_EXPECTED: Final = "a position, the name of a span such as 'subject.last', or sonde.span(...)"


@dataclass(frozen=True, slots=True)
class NamedPositions:
    """Positions of a prompt by name. Made by `span()`."""

    span: str
    """The name of the span; empty: the whole prompt."""
    part: SpanPart | None = None
    """Which of its positions; None: all."""

    def __str__(self) -> str:
        if not self.span:
            return self.part or "all"
        return f"{self.span}.{self.part}" if self.part else self.span


Positions: TypeAlias = tuple[int, ...] | tuple[NamedPositions, ...]
"""Positions by number, or by name."""
PositionLike: TypeAlias = SupportsIndex | str | NamedPositions
"""One position: its number (negative ones count from the end), or its name."""
PositionsLike: TypeAlias = PositionLike | Iterable[PositionLike] | None
"""One or several positions, by number or by name; None means the contract's default, which is usually all."""


def span(name: str, part: SpanPart | None = None) -> NamedPositions:
    """Positions by the name of a span.

    Args:
        name: the name of a span of the prompt. In a chat, a role such as `"user"` is the content of the role's last
            message, and `"user[0]"` that of its first. Empty text is the whole prompt.
        part: `"first"`, `"last"`, `"middle"` (what lies between these), `"next"` (the position after the span) or
            `"further"` (those after that, without the last of the prompt); None means all positions of the span.

    Raises:
        InvalidRequest: if the name is not text, or the part is not known.
    """
    if not isinstance(name, str):
        raise refusal("span", "the name of a span", name)
    return NamedPositions(name, None if part is None else check_name(part, SPAN_PARTS, "part"))


def named(given: str) -> NamedPositions:
    """The positions that a text names: `"subject"`, `"subject.last"`, `"end"`.

    Raises:
        InvalidRequest: if the text is empty.
    """
    if given in _WHOLE:
        return NamedPositions("", _WHOLE[given])
    name, dot, part = given.rpartition(".")
    if dot and name and part in SPAN_PARTS:
        return NamedPositions(name, cast("SpanPart", part))
    if not given:
        raise refusal("positions", _EXPECTED, given)
    return NamedPositions(given)


def position(given: PositionLike, name: str) -> int | NamedPositions:
    """One position.

    Raises:
        InvalidRequest: if it is neither a number nor a name.
    """
    if isinstance(given, NamedPositions):
        return given
    return named(given) if isinstance(given, str) else index(given, name)


def positions(given: PositionsLike, name: str) -> Positions:
    """One or several positions as a tuple; None becomes an empty one.

    Raises:
        InvalidRequest: if one is neither a number nor a name, if there is none, or if numbers are mixed with names of
            spans. The first and the last position can be named among numbers.
    """
    if given is None or not _has_names(given):
        return indices(cast("Indices", given), name)
    several = (given,) if isinstance(given, str | NamedPositions) else cast("Iterable[PositionLike]", given)
    found = tuple(position(entry, name) for entry in several)
    names = tuple(entry for entry in found if isinstance(entry, NamedPositions))
    if len(names) == len(found):
        return names
    strange = [entry for entry in names if entry.span or entry.part not in _AS_NUMBER]
    if strange:
        raise InvalidRequest.at(name, f"expected either numbers or names, got numbers and the name {str(strange[0])!r}")
    return tuple(_AS_NUMBER[entry.part] if isinstance(entry, NamedPositions) else entry for entry in found)


def _has_names(given: PositionsLike) -> bool:
    if isinstance(given, str | NamedPositions):
        return True
    return isinstance(given, list | tuple) and any(isinstance(entry, str | NamedPositions) for entry in given)
