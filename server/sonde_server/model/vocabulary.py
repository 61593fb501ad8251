"""Text to tokens and back, with each token's place in the text."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..questions.images import ImageInput
from ..questions.prompts import Prompt, overlapping
from .chats import Message, Place, has_template, located, rendered, takes_parts
from .eyes import Eye
from .vision import Spread

# Texts for another text to continue. A token may not be shared by both: a letter is kept apart from the space or comma
# that follows it, and the end of a line or a full stop from letters.
_BEFORE = ("a", "a\n", "a.")


class Vocabulary:
    """The model's tokenizer. It is None for a model that has none: such a model takes and returns token ids only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, size: int, eye: Eye | None = None) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self.eye = eye

    @cached_property
    def longest(self) -> int:
        """Length of the longest token in characters: a text of n tokens has at most n times that length."""
        return max(map(len, self._required().get_vocab()))

    @property
    def image(self) -> ImageInput | None:
        """How the model reads images, if it does."""
        return None if self.eye is None else self.eye.described(self.placeholder)

    @cached_property
    def placeholder(self) -> str:
        """What stands for an image in a text; empty where none can be written."""
        if self.eye is None or self.tokenizer is None:
            return ""
        return "".join(map(self._piece, self.eye.vision.placeholder))

    @cached_property
    def _named(self) -> str:
        """The part of the placeholder that is looked for in a text."""
        return self._piece(self.eye.vision.named) if self.eye is not None and self.placeholder else ""

    def placeholders(self, text: str) -> int:
        """How many images a text has a place for."""
        return text.count(self._named) if self._named else 0

    def _piece(self, token: int) -> str:
        return str(self._required().convert_ids_to_tokens(token) or "")

    def _expanded(self, text: str, image: Spread | None) -> tuple[str, Callable[[int], int]]:
        """A text with all tokens of its image, and where characters of the text are in it."""
        if image is None:
            return text, lambda place: place
        if (count := self.placeholders(text)) != 1:
            raise ValueError(f"expected {self.placeholder!r} once, where the image goes, got it {count} times")
        assert self.eye is not None
        at, pieces = text.index(self._named), self.eye.vision.written(image)
        written = "".join(one if isinstance(one, str) else self._piece(one) for one in pieces)
        more = len(written) - len(self._named)
        return text[:at] + written + text[at + len(self._named) :], lambda place: place + more * (place > at)

    def encode(self, text: str, image: Spread | None = None) -> Prompt:
        """The tokens of a prompt, with the special tokens that the tokenizer adds.

        A text that starts with the begin token keeps that one and gets no second. `image`: how the image is
        spread whose placeholder is in the text.

        Raises:
            ValueError: if the tokenizer fails on this text, with its reason.
        """
        tokenizer = self._required()
        text, _ = self._expanded(text, image)
        with _failing():
            encoding = tokenizer(text, return_offsets_mapping=tokenizer.is_fast)
        tokens, begin = tuple(encoding["input_ids"]), tokenizer.bos_token_id
        offsets = tuple((start, end) for start, end in encoding["offset_mapping"]) if tokenizer.is_fast else ()
        if tokens[:2] == (begin, begin) and len(self._encode(text)) < len(tokens):
            tokens, offsets = tokens[1:], offsets[1:]
        return Prompt(tokens, text, offsets)

    @property
    def chat_template(self) -> bool:
        """Whether the checkpoint has a template for conversations."""
        return has_template(self.tokenizer)

    @cached_property
    def _parts(self) -> bool:
        """Whether the template takes texts and images apart."""
        return self.eye is not None and takes_parts(self._required())

    def chat(self, messages: Sequence[Message], image: Spread | None = None, **options: Any) -> Prompt:
        """The tokens of a conversation, as the checkpoint's own template writes it. No special tokens are added.

        The content of each message is a span: of the last one with the name of its role, and of each with its number
        among those of its role, such as "user[0]". A content that the template changes, beyond the spaces at its ends,
        has none. `image`: as in `encode`. `options`: add_generation_prompt and continue_final_message.

        Raises:
            ValueError: if the template does not accept the messages, or the tokenizer fails, with its reason.
        """
        tokenizer = self._required()
        with _failing():
            options["parts"] = self.placeholder if self._parts else None
            text = rendered(tokenizer, messages, **options)
            whole, moved = self._expanded(text, image)
            encoding = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
        offsets = tuple((start, end) for start, end in encoding["offset_mapping"]) if tokenizer.is_fast else ()
        spans: dict[str, tuple[int, ...]] = {}
        if offsets:
            places = located(tokenizer, messages, text, **options)
            places = [None if place is None else (moved(place[0]), moved(place[1])) for place in places]
            spans = _spans(messages, places, offsets)
        return Prompt(tuple(encoding["input_ids"]), whole, offsets, tuple(spans.items()))

    def target(self, text: str) -> int | None:
        """The token that a text is where it continues another one; None where the vocabulary has no such token.

        That is the token whose own text, in the middle of a longer one, is `text`: " Paris" and "Paris" are different
        tokens wherever the vocabulary has both. A tokenizer may put a space before a text that stands alone, so the
        text is encoded after others. No special tokens are added.
        """
        alike = None
        for tokens in self._continuations(text):
            shown = self.text(tokens[0]) if len(tokens) == 1 else ""
            if shown == text:
                return tokens[0]
            if shown and _normal(shown) == _normal(text):
                # The tokenizer may lower-case texts, or replace characters by others that look alike.
                alike = tokens[0]
        if alike is not None:
            return alike
        found = self._by_text.get(text)
        return self._by_text.get(f" {text}") if found is None and self._whole_words else found

    def pieces(self, text: str) -> list[int]:
        """The tokens that a text consists of where it continues another one.

        Raises:
            ValueError: if the tokenizer fails on this text, with its reason.
        """
        return next(self._continuations(text), None) or self._encode(text)

    def text(self, token: int) -> str:
        """A token as it appears in a text, with its leading space; a token that has no text is shown by its number.

        A decoder may drop the space of a token that stands alone, so the token is decoded after another one and that
        one's text is taken off.
        """
        if self.tokenizer is None or self.tokenizer.convert_ids_to_tokens(token) is None:
            # Many models pad their embedding, so that they have more tokens than their tokenizer.
            return f"<{token}>"
        if token in self._special:
            return str(self.tokenizer.convert_ids_to_tokens(token))
        if self._anchor is None:
            return self._decode(token)
        anchor, before = self._anchor
        both = self._decode(anchor, token)
        return both[len(before) :] if both.startswith(before) else self._decode(token)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of several tokens; special tokens have none."""
        if self.tokenizer is None:
            return "".join(map(self.text, tokens))
        decoded = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _continuations(self, text: str) -> Iterator[list[int]]:
        """The tokens that `text` adds to each of a few texts, without texts that it shares a token with."""
        for before, alone in self._befores.items():
            try:
                both = self._encode(before + text)
            except ValueError:
                continue
            if both[: len(alone)] == alone and len(both) > len(alone):
                yield both[len(alone) :]

    @cached_property
    def _befores(self) -> dict[str, list[int]]:
        """The tokens of texts for others to continue."""
        found = {}
        for before in _BEFORE:
            with suppress(ValueError):
                found[before] = self._encode(before)
        return found

    def _encode(self, text: str) -> list[int]:
        with _failing():
            return list(self._required().encode(text, add_special_tokens=False))

    def _decode(self, *tokens: int) -> str:
        return str(self._required().decode(list(tokens), clean_up_tokenization_spaces=False))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self._required().all_special_ids)

    @cached_property
    def _anchor(self) -> tuple[int, str] | None:
        """The first token of plain letters, after which other tokens are decoded, and its text."""
        tokenizer = self._required()
        for token in range(self.size):
            piece = tokenizer.convert_ids_to_tokens(token)
            if not isinstance(piece, str) or token in self._special:
                continue
            text = self._decode(token)
            letters = text.strip()
            # The token of a single byte, such as <0x41>, joins with the bytes that follow it.
            if letters.isascii() and letters.isalpha() and piece.endswith(letters):
                return token, text
        return None

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Texts and their tokens, without the texts that several tokens have in common."""
        texts = {token: self.text(token) for token in self._required().get_vocab().values()}
        count = Counter(texts.values())
        return {text: token for token, text in texts.items() if text and count[text] == 1}

    @cached_property
    def _whole_words(self) -> bool:
        """Whether every token is a whole word, so that a text with and without a space before it is the same token."""
        return not any(text[:1].isalnum() for text in self._by_text)

    def _required(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise LookupError("this model has no tokenizer; give token ids")
        return self.tokenizer


@contextmanager
def _failing() -> Iterator[None]:
    """Turns whatever a tokenizer raises over a text into a ValueError: tokenizers raise bare Exceptions too."""
    try:
        yield
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _spans(
    messages: Sequence[Message], places: Sequence[Place | None], offsets: Sequence[tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    """The positions of each content by name. The name of a role alone is that of its last message."""
    spans: dict[str, tuple[int, ...]] = {}
    numbers: Counter[str] = Counter()
    for (role, _), place in zip(messages, places, strict=True):
        spans.pop(role, None)
        if place is not None:
            spans[f"{role}[{numbers[role]}]"] = spans[role] = overlapping(offsets, *place)
        numbers[role] += 1
    return spans


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
