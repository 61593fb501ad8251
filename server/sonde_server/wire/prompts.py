"""What is asked of every run, and its prediction: prompts, positions, targets, top tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.interventions import Readings
from ..questions.prompts import Metric, Prompt, Target
from ..questions.token_probability import LayerReadings
from .fields import MOST_LISTED, MOST_TARGETS, Reader
from .images import alike, placed, read_image, with_image
from .names import read_one, read_spans
from .tensors import encode_floats, encode_integers

if TYPE_CHECKING:
    from ..model.vision import Spread
    from ..model.vocabulary import Vocabulary

# A target whose text is longer than this many of the longest token is not tokenized at all.
LONGEST_TARGET = 8
_NO_TOKENIZER = "expected token ids, because this model has no tokenizer"


def read_prompt(message: pb.Prompt, path: str, reader: Reader) -> Prompt | None:
    """The token ids of a prompt, its text if it was given as text, and its named positions."""

    def read() -> Prompt | None:
        prompt = _read_input(message, path, reader)
        return None if prompt is None else read_spans(message.spans, prompt, path, reader)

    # What is not a case's own is the same for all of them.
    return read() if path.startswith("cases[") else reader.once(path, read)


def read_source(
    message: pb.Prompt, path: str, sources: Sequence[pb.Prompt] | None, reader: Reader
) -> tuple[Prompt | None, str]:
    """Another prompt that a method takes, and its path.

    Without input it is the only one of a case's `sources` (None: there are no cases).
    """
    if sources is None or message.WhichOneof("input") is not None:
        return read_prompt(message, path, reader), path
    if len(sources) != 1:
        field = reader.prompt.removesuffix("prompt") + "sources"
        reader.problems.add(field, f"expected one source, which {path} without input means, got {len(sources)}")
        return None, path
    path = f"{reader.sources}[0]"
    return read_prompt(sources[0], path, reader), path


def _read_input(message: pb.Prompt, path: str, reader: Reader) -> Prompt | None:
    most = reader.model.max_positions
    if reader.limits.max_prompt_tokens:
        most = min(most, reader.limits.max_prompt_tokens)
    seen = read_image(message, path, most, reader)
    if message.image and seen is None:
        return None
    spread = None if seen is None else seen.spread
    kind = message.WhichOneof("input")
    match kind:
        case "text":
            prompt = _read_text(message.text, f"{path}.text", most, reader, spread)
        case "token_ids":
            prompt = _read_ids(message.token_ids.ids, f"{path}.token_ids.ids", most, reader)
        case "chat":
            prompt = _read_chat(message.chat, f"{path}.chat", most, reader, spread)
        case None:
            reader.problems.add(path, "expected text, token_ids or chat, got none")
            return None
    return prompt if seen is None or prompt is None else with_image(prompt, seen, f"{path}.{kind}", reader)


def _read_text(text: str, path: str, most: int, reader: Reader, image: "Spread | None" = None) -> Prompt | None:
    if reader.vocabulary.tokenizer is None:
        reader.problems.add(path, _NO_TOKENIZER)
        return None
    if not _short_enough(len(text), most, path, reader) or not placed([text], path, reader, seen=image is not None):
        return None
    try:
        prompt = reader.vocabulary.encode(text, image)
    except ValueError as error:
        _cannot_encode(error, path, reader)
        return None
    return _checked(prompt, most, path, reader)


def _read_chat(message: pb.Chat, path: str, most: int, reader: Reader, image: "Spread | None" = None) -> Prompt | None:
    """A conversation, written by the checkpoint's own template."""
    field, problems, before = f"{path}.messages", reader.problems, len(reader.problems.violations)
    if reader.vocabulary.tokenizer is None:
        problems.refuse(path, "this model has no tokenizer, so it takes token ids only")
        return None
    if not reader.vocabulary.chat_template:
        problems.refuse(path, "the checkpoint of this model has no chat template; write the prompt as a text")
        return None
    if not message.messages:
        problems.add(field, "expected at least one message, got none")
    if not reader.listed(len(message.messages), MOST_LISTED, field, "messages"):
        return None
    for i, one in enumerate(message.messages):
        if not one.role:
            problems.add(f"{field}[{i}].role", "expected a role, such as user or assistant, got an empty text")
    if message.add_generation_prompt and message.continue_final_message:
        problems.add(
            f"{path}.continue_final_message",
            "expected one of add_generation_prompt and continue_final_message, got both",
        )
    messages = [(one.role, one.content) for one in message.messages]
    _short_enough(sum(len(role) + len(content) for role, content in messages), most, field, reader)
    placed([content for _, content in messages], field, reader, seen=image is not None)
    if len(problems.violations) > before:
        return None
    try:
        prompt = reader.vocabulary.chat(
            messages,
            image,
            add_generation_prompt=message.add_generation_prompt,
            continue_final_message=message.continue_final_message,
        )
    except ValueError as error:
        problems.add(field, f"expected messages that the model's chat template accepts; it failed: {str(error)[:200]}")
        return None
    return _checked(prompt, most, path, reader)


def _short_enough(characters: int, most: int, path: str, reader: Reader) -> bool:
    """Whether a text can have few enough tokens: one that cannot is not tokenized, which would take long."""
    longest = most * reader.vocabulary.longest
    if characters > longest:
        reader.problems.add(
            path, f"expected at most {longest} characters, the most that {most} tokens can have, got {characters}"
        )
    return characters <= longest


def _checked(prompt: Prompt, most: int, path: str, reader: Reader) -> Prompt | None:
    """The prompt, if the model can read its tokens."""
    if not _fits(len(prompt.tokens), most, path, reader):
        return None
    unknown = [token for token in dict.fromkeys(prompt.tokens) if not _embedded(token, path, reader)]
    return None if unknown else prompt


def _cannot_encode(error: ValueError, path: str, reader: Reader) -> None:
    reader.problems.add(path, f"expected a text that the model's tokenizer can encode; it failed: {str(error)[:200]}")


def _embedded(token: int, path: str, reader: Reader) -> bool:
    """Whether the model has the token: a tokenizer may have tokens that were never added to the model."""
    size = reader.model.vocabulary_size
    if token >= size:
        shown = reader.vocabulary.text(token)
        reader.problems.add(
            path, f"expected tokens from 0 to {size - 1}, which the model has, got token {token}, {shown!r}"
        )
    return token < size


def _read_ids(ids: Sequence[int], path: str, most: int, reader: Reader) -> Prompt | None:
    if not _fits(len(ids), most, path, reader):
        return None
    known = [_read_token_id(token, f"{path}[{i}]", reader) for i, token in enumerate(ids)]
    return None if None in known else Prompt(tuple(ids))


def _fits(tokens: int, most: int, path: str, reader: Reader) -> bool:
    if not 1 <= tokens <= most:
        reader.problems.add(path, f"expected a prompt of 1 to {most} tokens, got {tokens}")
    return 1 <= tokens <= most


def read_position(
    message: pb.TraceRequest | pb.Readout, prompt: Prompt | None, prefix: str, reader: Reader
) -> int | None:
    """The position that is read, by default the last. `prefix`: what the paths of its fields begin with."""
    path = f"{prefix}position"
    if message.HasField("named_position"):
        if message.HasField("position"):
            reader.problems.add(f"{prefix}named_position", "expected one of position and named_position, got both")
        return read_one(message.named_position, prompt, f"{prefix}named_position", reader)
    given = message.position if message.HasField("position") else -1
    return reader.position(given, None if prompt is None else len(prompt.tokens), path)


def read_targets(messages: Sequence[pb.Target], path: str, reader: Reader) -> tuple[Target, ...]:
    """The tokens whose predictions are measured."""
    if len(messages) > MOST_TARGETS:
        reader.problems.add(path, f"expected at most {MOST_TARGETS} targets, got {len(messages)}")
        return ()
    targets = [_read_target(message, f"{path}[{i}]", reader) for i, message in enumerate(messages)]
    return tuple(target for target in targets if target is not None)


def _read_target(message: pb.Target, path: str, reader: Reader) -> Target | None:
    token: int | None = None
    match message.WhichOneof("token"):
        case "text":
            token = _read_token(message.text, f"{path}.text", reader)
        case "id":
            token = _read_token_id(message.id, f"{path}.id", reader)
        case None:
            reader.problems.add(path, "expected text or id, got neither")
    contrast: int | None = None
    match message.WhichOneof("contrast"):
        case "contrast_text":
            contrast = _read_token(message.contrast_text, f"{path}.contrast_text", reader)
        case "contrast_id":
            contrast = _read_token_id(message.contrast_id, f"{path}.contrast_id", reader)
        case None:
            pass
    return None if token is None else Target(token, contrast)


def _read_token_id(token: int, path: str, reader: Reader) -> int | None:
    return reader.index(token, reader.model.vocabulary_size, path, "token")


def _read_token(text: str, path: str, reader: Reader) -> int | None:
    vocabulary = reader.vocabulary
    if vocabulary.tokenizer is None:
        reader.problems.add(path, _NO_TOKENIZER)
        return None
    if len(text) > LONGEST_TARGET * vocabulary.longest:
        reader.problems.add(
            path,
            f"expected one token, of which the longest has {vocabulary.longest}, got {len(text)} characters",
        )
        return None
    if (token := reader.once(("token", text), lambda: vocabulary.target(text))) is not None:
        return token if _embedded(token, path, reader) else None
    try:
        pieces = vocabulary.pieces(text)
    except ValueError as error:
        _cannot_encode(error, path, reader)
        return None
    shown = ", ".join(f"{token} {vocabulary.text(token)!r}" for token in pieces[:8]) + (", ..." if pieces[8:] else "")
    given = text if len(text) <= 80 else text[:80] + "..."
    other = f"; {' ' + text!r} is one" if text and vocabulary.target(f" {text}") is not None else ""
    reader.problems.add(path, f"expected exactly one token, got {given!r}, which is [{shown}]{other}")
    return None


def read_alike(
    message: pb.Prompt, path: str, prompt: Prompt | None, sources: Sequence[pb.Prompt] | None, reader: Reader
) -> Prompt | None:
    """As `read_source`, of a source that must have as many tokens as the prompt."""
    source, path = read_source(message, path, sources, reader)
    if source is None or prompt is None:
        return None
    return source if check_alike(source, prompt, path, reader) else None


def check_alike(source: Prompt, prompt: Prompt, path: str, reader: Reader) -> bool:
    """Whether a source has as many tokens as the prompt, and where that has an image, one that lies as that does."""
    if len(source.tokens) != len(prompt.tokens):
        expected = f"expected {len(prompt.tokens)} tokens, as in the prompt"
        reader.problems.add(path, f"{expected}, got {len(source.tokens)}")
        return False
    return alike(source, prompt, path, reader)


def read_metric(number: int, unset: Metric, path: str, reader: Reader) -> Metric:
    """Which number is differentiated."""
    if number == 0:
        return unset
    try:
        return Metric(number)
    except ValueError:
        known = ", ".join(metric.name for metric in Metric)
        reader.problems.add(path, f"expected one of {known}, got metric {number}")
        return unset


class Texts(dict[int, str]):
    """The texts of tokens, each looked up once."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._sent: set[int] = set()

    def __missing__(self, token: int) -> str:
        text = self[token] = self._vocabulary.text(token)
        return text

    def begin(self) -> None:
        """From now on, every text is new again: the messages of each case have a table of their own."""
        self._sent.clear()

    def new(self, tokens: answers.Integers) -> dict[int, str]:
        """The texts of those tokens that were not asked for here before."""
        found = [token for token in np.unique(tokens).tolist() if token not in self._sent]
        self._sent.update(found)
        return {token: self[token] for token in found}


def encode_tokens(ids: Iterable[int], texts: Mapping[int, str]) -> list[pb.Token]:
    """Tokens with their texts."""
    return [pb.Token(id=token, text=texts[token]) for token in ids]


def encode_top_tokens(readings: Readings | LayerReadings, message: pb.Readings | pb.LayerReadings) -> None:
    """Sets the top tokens of a message, where there are any."""
    if readings.top_tokens.shape[1]:
        message.top_token_ids.CopyFrom(encode_integers(readings.top_tokens))
        message.top_log_probabilities.CopyFrom(encode_floats(readings.top_log_probabilities))
