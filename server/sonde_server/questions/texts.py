"""The text of a continuation, token by token, and where it contains a text that ends it."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""The text of several tokens; special tokens have none."""

# A token's text may depend on the tokens before it: on this many, the last of the prompt among them.
CONTEXT = 6
# How a decoder shows a character whose last bytes are missing.
_UNFINISHED = "\ufffd"


class GrowingText:
    """The text that every new token adds to a prompt.

    A character may take several tokens: it comes with the last of them. Special tokens add nothing.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT:])
        self._text = decode(self._tokens)

    def add(self, token: int, *, last: bool = False) -> str:
        """The text that a token adds; with the `last` token, also what is left of an unfinished character."""
        self._tokens.append(token)
        whole = self._decode(self._tokens)
        sure = whole if last else whole.rstrip(_UNFINISHED)
        # Compared, since a character that was unfinished has another text now.
        pairs = enumerate(zip(self._text, sure, strict=False))
        added = sure[next((i for i, (a, b) in pairs if a != b), min(len(self._text), len(sure))) :]
        if len(sure) < len(whole):
            self._text = sure if added else self._text
        else:
            del self._tokens[: -CONTEXT - 1]
            self._text = self._decode(self._tokens)
        return added


class Stops:
    """Says when a continuation contains one of some texts; characters that are unfinished are not looked at."""

    def __init__(self, stops: Sequence[str], decode: Decode, prompt: Sequence[int]) -> None:
        self._stops = stops
        self._growing = GrowingText(decode, prompt)
        self._kept = max(map(len, stops)) - 1
        self._end = ""

    def completed_by(self, token: int) -> bool:
        """Whether the text contains one of the texts with this token, which is the next."""
        text = self._end + self._growing.add(token)
        # What is left is too short for any of them, so that none is found twice.
        self._end = text[-self._kept :] if self._kept else ""
        return any(stop in text for stop in self._stops)
