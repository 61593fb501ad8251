"""What is asked of every run, and its prediction: prompts, positions, targets, top tokens."""

from collections.abc import Iterable, Mapping, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.prompts import Metric, Prompt, Target
from .fields import MOST_TARGETS, Reader
from .tensors import encode_floats, encode_integers

# Texts of targets of so many times the longest token are not even cut into tokens.
LONGEST_TARGET = 8
_NO_TOKENIZER = "this model has no tokenizer; give token ids"


def read_prompt(message: pb.Prompt, path: str, reader: Reader) -> Prompt | None:
    """The token ids of a prompt, and its text where it is one."""
    if message.image:
        reader.problems.add(f"{path}.image", "the hosted model sees no images; leave it empty")
    most = reader.model.max_positions
    if reader.limits.max_prompt_tokens:
        most = min(most, reader.limits.max_prompt_tokens)
    match message.WhichOneof("input"):
        case "text":
            return _read_text(message.text, f"{path}.text", most, reader)
        case "token_ids":
            return _read_ids(message.token_ids.ids, f"{path}.token_ids.ids", most, reader)
        case _:
            reader.problems.add(path, "nothing was given; give text or token_ids")
            return None


def _read_text(text: str, path: str, most: int, reader: Reader) -> Prompt | None:
    if reader.vocabulary.tokenizer is None:
        reader.problems.add(path, _NO_TOKENIZER)
        return None
    # A text that cannot fit is not even cut into tokens, which would take long.
    longest = most * reader.vocabulary.longest
    if len(text) > longest:
        reader.problems.add(path, f"the text has {len(text)} characters; {most} tokens have {longest} at most")
        return None
    prompt = reader.vocabulary.encode(text)
    if not _fits(len(prompt.tokens), most, path, reader):
        return None
    unknown = [token for token in dict.fromkeys(prompt.tokens) if not _embedded(token, path, reader)]
    return None if unknown else prompt


def _embedded(token: int, path: str, reader: Reader) -> bool:
    """Whether the model has the token: a tokenizer may have been given more than the model was."""
    size = reader.model.vocabulary_size
    if token >= size:
        shown = reader.vocabulary.text(token)
        reader.problems.add(
            path, f"{shown!r} is token {token}, which the model does not have; tokens are 0 to {size - 1}"
        )
    return token < size


def _read_ids(ids: Sequence[int], path: str, most: int, reader: Reader) -> Prompt | None:
    if not _fits(len(ids), most, path, reader):
        return None
    known = [reader.index(token, reader.model.vocabulary_size, f"{path}[{i}]", "token") for i, token in enumerate(ids)]
    return None if None in known else Prompt(tuple(ids))


def _fits(tokens: int, most: int, path: str, reader: Reader) -> bool:
    if not 1 <= tokens <= most:
        reader.problems.add(path, f"the prompt has {tokens} tokens; give 1 to {most}")
    return 1 <= tokens <= most


def read_position(
    message: pb.TraceRequest | pb.Readout, prompt: Prompt | None, path: str, reader: Reader
) -> int | None:
    """The position that is read, by default the last."""
    given = message.position if message.HasField("position") else -1
    return reader.position(given, None if prompt is None else len(prompt.tokens), path)


def read_targets(messages: Sequence[pb.Target], path: str, reader: Reader) -> tuple[Target, ...]:
    """The tokens whose predictions are measured."""
    if len(messages) > MOST_TARGETS:
        reader.problems.add(path, f"{len(messages)} targets were given; give at most {MOST_TARGETS}")
        return ()
    targets = [_read_target(message, f"{path}[{i}]", reader) for i, message in enumerate(messages)]
    return tuple(target for target in targets if target is not None)


def _read_target(message: pb.Target, path: str, reader: Reader) -> Target | None:
    size = reader.model.vocabulary_size
    token: int | None = None
    match message.WhichOneof("token"):
        case "text":
            token = _read_token(message.text, f"{path}.text", reader)
        case "id":
            token = reader.index(message.id, size, f"{path}.id", "token")
        case _:
            reader.problems.add(path, "the token is missing; give text or id")
    contrast: int | None = None
    match message.WhichOneof("contrast"):
        case "contrast_text":
            contrast = _read_token(message.contrast_text, f"{path}.contrast_text", reader)
        case "contrast_id":
            contrast = reader.index(message.contrast_id, size, f"{path}.contrast_id", "token")
        case _:
            pass
    return None if token is None else Target(token, contrast)


def _read_token(text: str, path: str, reader: Reader) -> int | None:
    vocabulary = reader.vocabulary
    if vocabulary.tokenizer is None:
        reader.problems.add(path, _NO_TOKENIZER)
        return None
    if len(text) > LONGEST_TARGET * vocabulary.longest:
        reader.problems.add(path, f"{len(text)} characters were given; the longest token has {vocabulary.longest}")
        return None
    tokens = vocabulary.target(text)
    if len(tokens) == 1:
        return tokens[0] if _embedded(tokens[0], path, reader) else None
    shown = ", ".join(f"{token} {vocabulary.text(token)!r}" for token in tokens[:8]) + (", ..." if tokens[8:] else "")
    given = text if len(text) <= 80 else text[:80] + "..."
    reader.problems.add(
        path, f"{given!r} is {len(tokens)} tokens ({shown}); give a text that is exactly one, or the id of one"
    )
    return None


def read_metric(number: int, unset: Metric, path: str, reader: Reader) -> Metric:
    """Which number is differentiated."""
    if number == 0:
        return unset
    try:
        return Metric(number)
    except ValueError:
        known = ", ".join(metric.name for metric in Metric)
        reader.problems.add(path, f"metric {number} is not known; there are {known}")
        return unset


def encode_tokens(ids: Iterable[int], texts: Mapping[int, str]) -> list[pb.Token]:
    """Tokens with their texts."""
    return [pb.Token(id=token, text=texts[token]) for token in ids]


def encode_top_tokens(
    readings: answers.Readings | answers.LayerReadings, message: pb.Readings | pb.LayerReadings
) -> None:
    """Sets the top tokens of a message, where there are any."""
    if readings.top_tokens.shape[1]:
        message.top_token_ids.CopyFrom(encode_integers(readings.top_tokens))
        message.top_log_probabilities.CopyFrom(encode_floats(readings.top_log_probabilities))
