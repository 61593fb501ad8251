"""Asking for the tokens of prompts: a dry run of each, which the server answers without running the model."""

from collections.abc import Sequence
from typing import Any

from sonde._answers.model import Limits
from sonde._answers.tokens import Tokens, TokensOfCases
from sonde._asking.asking import Asking, Patience, Request
from sonde._connection.progress import Steps
from sonde._wire.context import Context
from sonde._wire.parts import missing
from sonde.errors import NotServing
from sonde.v1 import inspection_pb2 as pb


class Tokenizing(Asking[Any]):
    """Asks for the tokens of each prompt in turn."""

    needs_limits = False

    def __init__(self, prompts: Sequence[pb.Prompt], *, many: bool) -> None:
        self._prompts = prompts
        self._many = many
        self._found: list[Tokens] = []
        self._asked = 0
        """How many prompts have been asked for."""
        self._patience = Patience()

    def request(self, limits: Limits | None) -> Request | None:  # noqa: ARG002 - one prompt at a time
        """The dry run of the next prompt."""
        if len(self._found) == len(self._prompts):
            return None
        self._asked = len(self._found) + 1
        return pb.TraceRequest(prompt=self._prompts[len(self._found)], dry_run=True)

    def feed(self, message: pb.TraceResponse) -> None:
        """Take the answer, which is one message."""
        if message.HasField("context"):
            context = Context(message.context, dry_run=True)
            known = context.common()
            self._found.append(Tokens(context.tokens, known["spans"], context.provenance, known["images"]))
            self._patience.answered()

    def end(self) -> None:
        """Check that the answer has come.

        Raises:
            ProtocolError: if it has not.
        """
        if len(self._found) < self._asked:
            raise missing(f"no tokens of prompt {self._asked - 1}")

    def broken(self, error: NotServing) -> float:
        """How long to wait before asking again."""
        return self._patience.failed(error)

    @property
    def steps(self) -> Steps:
        """How many prompts have been answered."""
        number = len(self._prompts)
        return Steps(len(self._found), number, len(self._found), number if self._many else 0)

    def news(self) -> None:
        """Nothing: the tokens come at once."""

    def result(self) -> Any:
        """The tokens of the prompt, or of each case."""
        if self._many:
            return TokensOfCases(tuple(self._found), self._found[0].provenance)
        return self._found[0]
