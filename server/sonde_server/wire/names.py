"""Positions by name: the spans of a prompt, and which of its positions a name means."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sonde.v1 import inspection_pb2 as pb

from ..questions.images import SPAN
from ..questions.prompts import Prompt, overlapping
from .fields import MOST_LISTED, Reader

LONGEST_NAME = 64
# A name that is not there is answered with this many of those that are.
_MOST_SHOWN = 8


def read_spans(messages: Sequence[pb.Span], prompt: Prompt, path: str, reader: Reader) -> Prompt:
    """The prompt with the spans that the request gives it, after those that its chat has. `path`: the prompt's own."""
    field = f"{path}.spans"
    if not messages or not reader.listed(len(messages), MOST_LISTED, field, "spans"):
        return prompt
    spoken, spans = dict(prompt.spans), dict(prompt.spans)
    for i, message in enumerate(messages):
        name, where = message.name, f"{field}[{i}]"
        if not 1 <= len(name) <= LONGEST_NAME:
            reader.problems.add(f"{where}.name", f"expected a name of 1 to {LONGEST_NAME} characters, got {len(name)}")
        elif name in spoken:
            reader.problems.add(
                f"{where}.name", f"expected a name that is not that of {_whose(name, prompt)}, got {name!r}"
            )
        elif name in spans:
            reader.problems.add(f"{where}.name", f"expected each name once, got {name!r} twice")
        spans.setdefault(name, _read_span(message, where, prompt, reader))
    return replace(prompt, spans=tuple(spans.items()))


def _whose(name: str, prompt: Prompt) -> str:
    return "the image" if name == SPAN and prompt.image is not None else "a message of the chat"


def _read_span(message: pb.Span, path: str, prompt: Prompt, reader: Reader) -> tuple[int, ...]:
    kind = message.WhichOneof("where")
    if kind != "text" and message.HasField("occurrence"):
        reader.problems.add(f"{path}.occurrence", "expected no occurrence, which only a text has, got one")
    match kind:
        case "text":
            return find_text(
                message.text, prompt, f"{path}.text", reader, occurrence=message.occurrence, instead="positions"
            )
        case "positions":
            return tuple(sorted(read_position_list(message.positions, prompt, f"{path}.positions.positions", reader)))
        case None:
            reader.problems.add(path, "expected text or positions, got neither")
            return ()


def read_position_list(message: pb.PositionList, prompt: Prompt | None, path: str, reader: Reader) -> tuple[int, ...]:
    """The positions of a list, which has at least one, in its order."""
    if not message.positions:
        reader.problems.add(path, "expected at least one position, got none")
    return reader.positions(message.positions, None if prompt is None else len(prompt.tokens), path)


def read_named(
    message: pb.NamedPositions, prompt: Prompt | None, path: str, reader: Reader, within: str = ""
) -> tuple[int, ...] | None:
    """The positions that a name means in a prompt, in its order; there may be none. None where the name is faulty.

    `within`: the path of that prompt, if it is not the one that is run.
    """
    if message.part not in _KNOWN_PARTS:
        reader.problems.add(f"{path}.part", f"expected one of {', '.join(_PARTS)}, got part {message.part}")
        return None
    if prompt is None:
        return None
    tokens = len(prompt.tokens)
    if not message.span:
        return part_of(tuple(range(tokens)), message.part, tokens)
    for name, positions in prompt.spans:
        if name == message.span:
            return part_of(positions, message.part, tokens)
    known = [repr(name) for name, _ in prompt.spans]
    shown = ", ".join(known[:_MOST_SHOWN]) + (", ..." if known[_MOST_SHOWN:] else "")
    asked = message.span if len(message.span) <= LONGEST_NAME else message.span[:LONGEST_NAME] + "..."
    reader.problems.add(
        f"{within or reader.prompt}.spans", f"expected a span {asked!r}, which {path} names, got {shown or 'none'}"
    )
    return None


def read_rows(
    messages: Sequence[pb.NamedPositions],
    prompt: Prompt | None,
    path: str,
    reader: Reader,
    within: str = "",
    *,
    filled: bool = False,
) -> tuple[tuple[int, ...], ...] | None:
    """The positions of each entry of a list of names. None where one is faulty.

    `filled`: each entry must name at least one position, as where something is changed.
    """
    if not reader.listed(len(messages), MOST_LISTED, path, "entries"):
        return None
    reader.check()
    rows: list[tuple[int, ...]] = []
    for i, message in enumerate(messages):
        row = read_named(message, prompt, f"{path}[{i}]", reader, within)
        if row is not None and (row or not filled or _empty(message, f"{path}[{i}]", reader)):
            rows.append(row)
    return tuple(rows) if len(rows) == len(messages) else None


def read_one(
    message: pb.NamedPositions, prompt: Prompt | None, path: str, reader: Reader, within: str = ""
) -> int | None:
    """The one position that a name means."""
    row = read_named(message, prompt, path, reader, within)
    if row is None:
        return None
    if len(row) != 1:
        reader.problems.add(
            path, f"expected a name of one position, got {len(row)} ({_shown(message)}). Name a part, such as LAST"
        )
        return None
    return row[0]


def union(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The positions of several rows, each once, where it comes first."""
    return tuple(dict.fromkeys(position for row in rows for position in row))


def part_of(span: tuple[int, ...], part: int, tokens: int) -> tuple[int, ...]:
    """Which positions a part of a span is, in a prompt of `tokens` tokens."""
    match part:
        case pb.SPAN_PART_FIRST:
            return span[:1]
        case pb.SPAN_PART_MIDDLE:
            return span[1:-1]
        case pb.SPAN_PART_LAST:
            return span[-1:]
        case pb.SPAN_PART_NEXT:
            return tuple(range(tokens))[span[-1] + 1 : span[-1] + 2] if span else ()
        case pb.SPAN_PART_FURTHER:
            return tuple(range(span[-1] + 2, tokens - 1)) if span else ()
    return span


def find_text(
    wanted: str, prompt: Prompt, path: str, reader: Reader, *, instead: str, occurrence: int = 0
) -> tuple[int, ...]:
    """The positions of the tokens that make up one occurrence of a text in the prompt.

    `instead`: the field that gives positions, for a prompt that has no text.
    """
    problems = reader.problems
    bare = wanted.strip() or wanted
    if not wanted:
        problems.add(path, "expected a part of the prompt's text, got an empty text")
    elif prompt.text is None:
        problems.add(path, f"expected {instead}, because the prompt is given as token ids, got a text")
    elif not prompt.offsets:
        problems.add(
            path,
            f"expected {instead}, because this model's tokenizer does not report where its tokens are in the text, got "
            "a text",
        )
    elif bare not in prompt.text:
        problems.add(path, f"expected a part of the prompt's text, exactly as written there, got {_quoted(wanted)}")
    else:
        starts = list(_occurrences(bare, prompt.text))
        if -len(starts) <= occurrence < len(starts):
            start = starts[occurrence]
            return _whole_tokens(prompt, start, start + len(bare), path, reader, instead)
        problems.add(
            f"{path.rpartition('.')[0]}.occurrence",
            f"expected an occurrence from {-len(starts)} to {len(starts) - 1}, because the prompt has {_quoted(bare)} "
            f"{len(starts)} times, got {occurrence}",
        )
    return ()


def _occurrences(wanted: str, text: str) -> Iterator[int]:
    """Where a text occurs, without overlaps."""
    start = text.find(wanted)
    while start >= 0:
        yield start
        start = text.find(wanted, start + len(wanted))


def _whole_tokens(prompt: Prompt, start: int, end: int, path: str, reader: Reader, instead: str) -> tuple[int, ...]:
    """The tokens of the prompt's text from `start` to `end`, which is refused where it takes a part of a token.

    A token may include spaces around the text: whether it does differs between vocabularies.
    """
    text = prompt.text
    assert text is not None
    shown = _quoted(text[start:end])
    found = overlapping(prompt.offsets, start, end)
    if not found:
        reader.problems.add(path, f"expected a text that overlaps a token of the prompt, got {shown}")
    cut = [i for i in found if (text[prompt.offsets[i][0] : start] + text[end : prompt.offsets[i][1]]).strip()]
    if cut:
        tokens = " and of ".join(f"{reader.vocabulary.text(prompt.tokens[i])!r} (position {i})" for i in cut[:4])
        reader.problems.add(
            path,
            f"{shown} does not cover whole tokens: it takes only part of {tokens}. Use whole tokens, or give {instead}",
        )
    return found


def _empty(message: pb.NamedPositions, path: str, reader: Reader) -> bool:
    reader.problems.add(path, f"expected at least one position, got none ({_shown(message)})")
    return False


def _shown(message: pb.NamedPositions) -> str:
    part = pb.SpanPart.Name(message.part).removeprefix("SPAN_PART_")
    span = repr(message.span) if message.span else "the whole prompt"
    return span if message.part == pb.SPAN_PART_UNSPECIFIED else f"{part} of {span}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


_KNOWN_PARTS = frozenset(pb.SpanPart.values())
_PARTS = tuple(name.removeprefix("SPAN_PART_") for name, _ in pb.SpanPart.items() if name != "SPAN_PART_UNSPECIFIED")
