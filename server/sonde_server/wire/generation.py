"""Generation: how every run is continued, and its text, token by token."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..questions.generation import Generated, Generation
from .fields import Reader

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

# A token's text may depend on the tokens before it: on this many, the last of the prompt among them.
CONTEXT = 6
_UNFINISHED = "\ufffd"


def read_generation(message: pb.Generation, path: str, tokens: int | None, reader: Reader) -> Generation:
    """How a prompt of `tokens` tokens is continued."""
    most = reader.model.max_positions - (tokens or 1) + 1
    if not 1 <= message.max_new_tokens <= most:
        # The last token is added and not read, so it needs no position.
        reader.problems.add(
            f"{path}.max_new_tokens",
            f"expected 1 to {most} after {tokens or 1} tokens, because the model has {reader.model.max_positions} "
            f"positions, got {message.max_new_tokens}",
        )
    temperature = message.temperature
    if not math.isfinite(temperature) or temperature < 0:
        reader.problems.add(f"{path}.temperature", f"expected a finite number of 0 or more, got {temperature}")
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    return Generation(message.max_new_tokens, temperature, seed, message.ignore_end_token)


@dataclass(slots=True)
class _Continuation:
    """The last tokens of a run; the text of the first `known` of them has been sent."""

    tokens: list[int]
    known: int


class Continuations:
    """The text that every new token adds, by run.

    A character may take several tokens: its text is sent with the last of them. Special tokens add nothing.
    """

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary
        self._prompt: Sequence[int] = ()
        self._runs: dict[int, _Continuation] = {}

    def begin(self, prompt: Sequence[int]) -> None:
        """Says which prompt the runs continue."""
        self._prompt = prompt[-CONTEXT:]

    def add(self, run: int, token: int, *, last: bool) -> str:
        """The text that a token adds to a run; with its `last` token, also what is left of an unfinished character."""
        continuation = self._runs.setdefault(run, _Continuation(list(self._prompt), len(self._prompt)))
        before = self._vocabulary.decode(continuation.tokens[: continuation.known])
        continuation.tokens.append(token)
        after = self._vocabulary.decode(continuation.tokens)
        if after.endswith(_UNFINISHED) and not last:
            return ""
        del continuation.tokens[: max(0, continuation.known - CONTEXT)]
        continuation.known = len(continuation.tokens)
        if last:
            del self._runs[run]
        # Compared, since a character that was unfinished has another text now.
        return after[next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before)) :]


def encode_generated(step: Generated, texts: Mapping[int, str], continuations: Continuations) -> Iterator[pb.Generated]:
    """The parts of one step, run by run."""
    for run, token, reason in zip(step.runs, step.tokens, step.reasons, strict=True):
        yield pb.Generated(
            run=run,
            offset=step.offset,
            tokens=[pb.Token(id=token, text=texts[token])],
            text=continuations.add(run, token, last=reason is not None),
            finish_reason=pb.Generated.FinishReason.ValueType(reason or 0),
        )
