"""What runs go on to say, token by token, as text that joins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

# A token's text may hang on those before it; so many are looked at, the prompt's last among them.
CONTEXT = 6
_UNFINISHED = "\ufffd"


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
