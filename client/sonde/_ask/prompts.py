"""Prompts, conversations, and the target tokens whose prediction is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from sonde._ask.given import array, flag, refusal, several
from sonde._ask.images import ImageLike, as_image
from sonde._ask.indices import index
from sonde._ask.spans import Span, Spans, as_spans

_EXPECTED: Final = "text, or token ids as one sequence of integers"


Message: TypeAlias = tuple[str, str] | Mapping[str, str]
"""A message of a conversation: (role, content), or a mapping with "role" and "content"."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, which the server writes as text by the chat template of the model's own checkpoint.

    The content of each message is a span: `"user"` is that of the user's last message, `"user[0]"` that of the first.

        sonde.Chat([("user", "How do I bake bread?")], add_generation_prompt=True)

    Raises:
        InvalidRequest: if there is no message, or one is not a role and a content.
    """

    messages: Sequence[Message]
    """(role, content) pairs, or mappings with "role" and "content"."""
    add_generation_prompt: bool = False
    """Whether the text ends with what opens the assistant's next message."""
    continue_final_message: bool = False
    """Whether the text ends with the content of the last message, which the model continues."""
    spans: Spans = field(default_factory=dict)
    """Names for parts of the text that the template writes."""

    def __post_init__(self) -> None:
        messages = tuple(map(_message, several(self.messages, "messages", _EXPECTED_MESSAGES)))
        if not messages:
            raise refusal("messages", _EXPECTED_MESSAGES, self.messages)
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "add_generation_prompt", flag(self.add_generation_prompt, "add_generation_prompt"))
        object.__setattr__(self, "continue_final_message", flag(self.continue_final_message, "continue_final_message"))
        object.__setattr__(self, "spans", as_spans(self.spans))

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The messages as pairs of role and content."""
        return cast("tuple[tuple[str, str], ...]", self.messages)


_EXPECTED_MESSAGES: Final = "at least one message, as (role, content) or a mapping with 'role' and 'content'"


def _message(given: Message) -> tuple[str, str]:
    pair = (given.get("role"), given.get("content")) if isinstance(given, Mapping) else tuple(given)
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise refusal("messages", _EXPECTED_MESSAGES, given)
    return cast("tuple[str, str]", pair)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, token ids or a conversation, with an image for a model that reads images, and names for some positions.

    Client methods also accept a plain `str`, token ids or a `Chat`. This class is needed for images and spans, and for
    token ids among the sources of a patch.
    """

    input: str | Sequence[SupportsIndex] | npt.NDArray[np.integer] | Chat
    """The server tokenizes text and adds the tokenizer's special tokens. Ids, [T] or [1, T], are used unchanged."""
    image: ImageLike | None = field(default=None, repr=False)
    """For a model that reads images: the bytes or the path of a PNG or JPEG, a picture of Pillow, or an array [row,
    column] or [row, column, 3] of uint8. The text has `client.model.image.placeholder` where the image goes."""
    spans: Spans = field(default_factory=dict)
    """Names for parts of the text or for positions, as in `{"subject": "The Eiffel Tower"}`; see `sonde.span`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", as_spans(self.spans))
        object.__setattr__(self, "image", as_image(self.image))

    @property
    def file(self) -> bytes | None:
        """The bytes of the image."""
        return cast("bytes | None", self.image)

    @property
    def content(self) -> str | tuple[int, ...] | Chat:
        """The text, the ids as a tuple, or the conversation.

        Raises:
            InvalidRequest: if the ids are not integers or are more than one sequence.
        """
        if isinstance(self.input, str | Chat):
            return self.input
        ids = array(self.input, "prompt", _EXPECTED)
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise refusal("prompt", _EXPECTED, self.input)
        return tuple(index(int(entry), "prompt") for entry in ids)

    @property
    def named_spans(self) -> dict[str, Span]:
        """All spans, those of a conversation included."""
        own = cast("dict[str, Span]", self.spans)
        return {**as_spans(self.input.spans), **own} if isinstance(self.input, Chat) else dict(own)


PromptLike: TypeAlias = str | Sequence[SupportsIndex] | npt.NDArray[np.integer] | Chat | Prompt


def as_prompt(given: PromptLike) -> Prompt:
    """Return as a `Prompt`."""
    return given if isinstance(given, Prompt) else Prompt(given)


TokenLike: TypeAlias = str | SupportsIndex
"""A token, by its text (including a leading space) or by its id."""


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured. With a contrast, its logit is the difference target minus contrast."""

    token: TokenLike
    contrast: TokenLike | None = None


TargetLike: TypeAlias = TokenLike | tuple[TokenLike, TokenLike] | Target
Targets: TypeAlias = TargetLike | Sequence[TargetLike] | None
"""One target or several; None means the unchanged run's own top prediction."""


def as_targets(given: Targets) -> tuple[Target, ...]:
    """Return as a tuple: one token, or a sequence of tokens, `(target, contrast)` pairs and `Target`s."""
    if given is None:
        return ()
    # A column or tensor of ids counts as an integer to a type checker; those of no axes are one.
    axes = getattr(given, "ndim", 0)
    if not axes and isinstance(given, str | Target | SupportsIndex):
        return (_as_target(given.item() if isinstance(given, np.ndarray) else given),)
    return tuple(map(_as_target, several(cast("Iterable[TargetLike]", given), "targets", _EXPECTED_TARGETS)))


_EXPECTED_TARGETS: Final = "a token's text or id, a pair (target, contrast), or several of these"


def _as_target(given: TargetLike) -> Target:
    if isinstance(given, Target):
        return given
    if isinstance(given, tuple):
        if len(given) != 2:
            raise refusal("targets", "a pair (target, contrast)", given)
        return Target(*given)
    return Target(given)
