"""How every run is continued, and what it says then, token by token, as text that joins."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.generation import Generation
from .fields import Reader

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

# A token's text may hang on those before it; so many are looked at, the prompt's last among them.
CONTEXT = 6
_UNFINISHED = "\ufffd"


def read_generation(message: pb.Generation, path: str, tokens: int | None, reader: Reader) -> Generation:
    """The continuation of a prompt of so many tokens."""
    most = reader.model.max_positions - (tokens or 1) + 1
    if not 1 <= message.max_new_tokens <= most:
        # The last token is added and not read, so it needs no position.
        reader.problems.add(
            f"{path}.max_new_tokens",
            f"{message.max_new_tokens} tokens cannot be added to {tokens or 1}: the model has "
            f"{reader.model.max_positions} positions; give 1 to {most}",
        )
    temperature = message.temperature
    if not math.isfinite(temperature) or temperature < 0:
        reader.problems.add(
            f"{path}.temperature", f"{temperature} is not a temperature; give a finite number of 0 or more"
        )
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    return Generation(message.max_new_tokens, temperature, seed, message.ignore_end_token)


@dataclass(slots=True)
class _Said:
    """The end of what a run has said: `known` of the tokens have been put into text."""

    tokens: list[int]
    known: int


class Continuations:
    """The text that every next token adds, by run.

    A character may take several tokens: its text comes with the last of them. Special tokens add nothing.
    """

    def __init__(self, vocabulary: "Vocabulary", prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._prompt = prompt[-CONTEXT:]
        self._runs: dict[int, _Said] = {}

    def add(self, run: int, token: int, *, last: bool) -> str:
        """What the text of a run gains; with its `last` token also what is left unfinished."""
        said = self._runs.setdefault(run, _Said(list(self._prompt), len(self._prompt)))
        before = self._vocabulary.decode(said.tokens[: said.known])
        said.tokens.append(token)
        after = self._vocabulary.decode(said.tokens)
        if after.endswith(_UNFINISHED) and not last:
            return ""
        del said.tokens[: max(0, said.known - CONTEXT)]
        said.known = len(said.tokens)
        if last:
            del self._runs[run]
        # Not by its length: a character that was unfinished has another text now.
        return after[next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before)) :]


def encode_generated(step: answers.Generated, texts: Mapping[int, str], said: Continuations) -> Iterator[pb.Generated]:
    """The parts of one step, run by run."""
    for run, token, reason in zip(step.runs, step.tokens, step.reasons, strict=True):
        yield pb.Generated(
            run=run,
            offset=step.offset,
            tokens=[pb.Token(id=token, text=texts[token])],
            text=said.add(run, token, last=reason is not None),
            finish_reason=pb.Generated.FinishReason.ValueType(reason or 0),
        )
