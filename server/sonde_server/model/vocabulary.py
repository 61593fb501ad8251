"""Text to tokens and back, with each token's place in the text."""

from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ..questions.prompts import Prompt


class Vocabulary:
    """The model's tokenizer, or none: a model without one takes and gives token ids alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, size: int) -> None:
        self.tokenizer = tokenizer
        self.size = size

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token: no text of n tokens has more than n times as many."""
        return max(map(len, self._required().get_vocab()))

    def encode(self, text: str) -> Prompt:
        """The prompt that a text is, with special tokens as the tokenizer adds them."""
        tokenizer = self._required()
        if not tokenizer.is_fast:
            return Prompt(tuple(tokenizer.encode(text)), text)
        encoding = tokenizer(text, return_offsets_mapping=True)
        return Prompt(
            tuple(encoding["input_ids"]), text, tuple((start, end) for start, end in encoding["offset_mapping"])
        )

    def target(self, text: str) -> list[int]:
        """The tokens of a continuation: no special tokens.

        A SentencePiece tokenizer marks the start of a text as it marks a space, so that " Paris" alone becomes two
        tokens; as the continuation of another text it is the one that is meant.
        """
        alone = self._encode(text)
        if len(alone) == 1:
            return alone
        before, both = self._encode("a"), self._encode("a" + text)
        rest = both[len(before) :]
        return rest if both[: len(before)] == before and len(rest) == 1 else alone

    def _encode(self, text: str) -> list[int]:
        return list(self._required().encode(text, add_special_tokens=False))

    def text(self, token: int) -> str:
        """A token as it stands in a text, a leading space included; one that has no text by its number.

        Decoding a token alone drops the space that SentencePiece marks it with, so it is decoded behind another
        and the difference taken.
        """
        if self.tokenizer is None or self.tokenizer.convert_ids_to_tokens(token) is None:
            # Many models have more tokens than their tokenizer, to come to a round number.
            return f"<{token}>"
        if token in self.tokenizer.all_special_ids:
            return str(self.tokenizer.convert_ids_to_tokens(token))
        anchor = self._anchor()
        before, both = self._decode(anchor), self._decode(anchor, token)
        return both[len(before) :] if both.startswith(before) else self._decode(token)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of several tokens; special ones have none."""
        if self.tokenizer is None:
            return "".join(map(self.text, tokens))
        decoded = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _decode(self, *tokens: int) -> str:
        return str(self._required().decode(list(tokens), clean_up_tokenization_spaces=False))

    def _anchor(self) -> int:
        """A token of plain letters, behind which others are decoded."""
        if not hasattr(self, "_anchor_id"):
            tokenizer = self._required()
            special = set(tokenizer.all_special_ids)
            candidates = (token for token in tokenizer.encode("a a", add_special_tokens=False) if token not in special)
            self._anchor_id = next(candidates, 0)
        return self._anchor_id

    def _required(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise LookupError("this model has no tokenizer; give token ids")
        return self.tokenizer
