"""Conversations as one text, by the checkpoint's own template, and where in it each message's content is."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from transformers import PreTrainedTokenizerBase

Message = tuple[str, str]
"""Role and content."""
_PROBE = "Probe"
Place = tuple[int, int]
"""Where a content begins and ends, in characters."""


def has_template(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether the checkpoint has a chat template; of several, one that is the default."""
    if tokenizer is None:
        return False
    try:
        return bool(tokenizer.get_chat_template())
    except ValueError:
        return False


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], parts: str | None = None, **options: Any
) -> str:
    """The text that the template writes. Raises whatever the template does.

    `parts`: what stands for an image, for a template that takes texts and images apart (`takes_parts`).
    """
    chat: list[dict[str, Any]] = [
        {"role": role, "content": content if parts is None else _apart(content, parts)} for role, content in messages
    ]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))


def takes_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes a content only where it is given as a list of texts and images."""

    def writes(parts: str | None) -> bool:
        try:
            return _PROBE in rendered(tokenizer, [("user", _PROBE)], parts)
        except Exception:  # noqa: BLE001 - a template may fail in any way over contents that it takes apart
            return False

    return not writes(None) and writes("")


def _apart(content: str, placeholder: str) -> list[dict[str, str]]:
    """A content as the list that templates of vision-language models take."""
    before, found, after = content.partition(placeholder) if placeholder else (content, "", "")
    image = [{"type": "image"}] if found else []
    return [*_text(before), *image, *_text(after)]


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


def located(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, **options: Any
) -> list[Place | None]:
    """Where in `text` the content of each message is; None where the template changes it beyond the spaces at its ends.

    The template is given marks in place of the contents. What it writes around them must be in `text` too, around the
    contents, which are followed from the start of the text and then, past one that is changed, from its end.
    """
    marks = _marks(text, len(messages))
    try:
        skeleton = rendered(
            tokenizer, [(role, mark) for (role, _), mark in zip(messages, marks, strict=True)], **options
        )
    except Exception:  # noqa: BLE001 - a template may fail in any way over contents that it takes apart
        return [None] * len(messages)
    between, order = _cut(skeleton, marks)
    contents = [messages[number][1] for number in order]
    ahead = _follow(text, between, contents)
    if len(ahead) == len(order):
        return _by_message(ahead, order, len(messages))
    mirrored = _follow(
        text[::-1], [part[::-1] for part in reversed(between)], [content[::-1] for content in reversed(contents)]
    )
    backwards = {len(order) - 1 - turn: (len(text) - end, len(text) - start) for turn, (start, end) in mirrored.items()}
    # A content that the template changes can be what it writes in its place and behind that: then it seems to be there.
    for found in (backwards | ahead, ahead, backwards):
        places = _by_message(found, order, len(messages))
        if _is_written(tokenizer, messages, text, places, marks, **options):
            return places
    return [None] * len(messages)


def _by_message(found: Mapping[int, Place], order: Sequence[int], messages: int) -> list[Place | None]:
    """The places of turns, by message: of a message that has several turns, the first that is known."""
    places: list[Place | None] = [None] * messages
    for turn, number in enumerate(order):
        if places[number] is None:
            places[number] = found.get(turn)
    return places


def _is_written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    text: str,
    places: Sequence[Place | None],
    marks: Sequence[str],
    **options: Any,
) -> bool:
    """Whether the template writes at just these places what it is given for these messages."""
    given = [
        (role, content if place is None else mark)
        for (role, content), mark, place in zip(messages, marks, places, strict=True)
    ]
    expected, end = "", 0
    for (start, stop), mark in sorted((place, mark) for place, mark in zip(places, marks, strict=True) if place):
        expected += text[end:start] + mark
        end = stop
    try:
        return rendered(tokenizer, given, **options) == expected + text[end:]
    except Exception:  # noqa: BLE001 - as above
        return False


def _marks(text: str, messages: int) -> list[str]:
    """Texts that are not in `text`, none a part of another, without anything that a template would take off."""
    for number in count():
        if (stem := f"Mark{number}x") not in text:
            return [f"{stem}{message:04}z" for message in range(messages)]
    raise AssertionError


def _cut(skeleton: str, marks: Sequence[str]) -> tuple[list[str], list[int]]:
    """What is between the marks, and the number of each mark in their order; those that are absent have none."""
    found = sorted((start, number) for number, mark in enumerate(marks) for start in _starts(mark, skeleton))
    between, end = [], 0
    for start, number in found:
        between.append(skeleton[end:start])
        end = start + len(marks[number])
    return [*between, skeleton[end:]], [number for _, number in found]


def _starts(mark: str, text: str) -> Iterator[int]:
    start = text.find(mark)
    while start >= 0:
        yield start
        start = text.find(mark, start + len(mark))


def _follow(text: str, between: Sequence[str], contents: Sequence[str]) -> dict[int, Place]:
    """Where the contents are in `text`, as far as it goes on as it should; by their turn."""
    places: dict[int, Place] = {}
    if not text.startswith(between[0]):
        return places
    at = len(between[0])
    for turn, (content, after) in enumerate(zip(contents, between[1:], strict=True)):
        last = turn == len(contents) - 1
        for form in (content, content.strip(), content.lstrip(), content.rstrip()):
            end = at + len(form)
            ends = len(text) == end + len(after) if last else True
            if ends and text.startswith(form, at) and text.startswith(after, end):
                break
        else:
            return places
        places[turn] = at, end
        at = end + len(after)
    return places
