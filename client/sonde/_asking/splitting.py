"""How many cases one request takes: as many as the server and the transport allow."""

from typing import Final

from sonde._answers.model import Limits
from sonde._asking.asking import Request
from sonde.v1 import inspection_pb2 as pb

_MOST_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024
"""The largest request: gRPC servers take 4 MiB, and the rest is for headers."""
_FRAME_BYTES: Final = 8
"""What a case takes in a request beside its own bytes, at most."""
_SPECIAL_TOKENS: Final = 8
_MESSAGE_TOKENS: Final = 32
"""What a tokenizer adds to a text, and a chat template to a message, at most."""


def without_cases(request: Request) -> Request:
    """A copy of a request that has no cases yet."""
    shell = type(request)()
    for field, value in request.ListFields():
        if field.name == "cases":
            continue
        if field.message_type is None and not isinstance(value, int | float | str | bytes | bool):
            getattr(shell, field.name).extend(value)
        elif field.message_type is None:
            setattr(shell, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(shell, field.name).CopyFrom(value)
        else:
            getattr(shell, field.name).extend(value)
    return shell


def end_of_request(request: Request, start: int, limits: Limits | None) -> int:
    """The case before which a request that begins with case `start` ends. It has at least one case."""
    most_cases = (limits.max_cases if limits else None) or len(request.cases)
    most_tokens = limits.max_total_tokens if limits else None
    shared: list[pb.Prompt] = list(request.sources) if isinstance(request, pb.InterveneRequest) else []
    size = without_cases(request).ByteSize()
    tokens = sum(map(_most_tokens, shared))
    for number in range(start, len(request.cases)):
        case = request.cases[number]
        size += case.ByteSize() + _FRAME_BYTES
        if most_tokens is not None:
            tokens += sum(map(_most_tokens, (case.prompt, *case.sources)))
        full = size > _MOST_BYTES or number - start >= most_cases or (most_tokens is not None and tokens > most_tokens)
        if full and number > start:
            return number
    return len(request.cases)


def _most_tokens(prompt: pb.Prompt) -> int:
    """More tokens than a prompt has: a token has at least one byte."""
    if prompt.HasField("token_ids"):
        return len(prompt.token_ids.ids)
    said = [message.content + message.role for message in prompt.chat.messages] or [prompt.text]
    added = _MESSAGE_TOKENS * len(prompt.chat.messages) + _SPECIAL_TOKENS
    return sum(len(text.encode()) for text in said) + added
