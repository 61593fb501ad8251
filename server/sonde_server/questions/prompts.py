"""What the model reads, and whose prediction is measured."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .images import Image, Sight, sight_of


class Metric(enum.IntEnum):
    """Which number of a target is differentiated."""

    LOGIT = 1
    LOG_PROBABILITY = 2
    PROBABILITY = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the text with each token's place in it where the prompt was given as text or as a chat.

    `spans`: the positions that have a name, by name. `image`: what its image is, if it has one.
    """

    tokens: tuple[int, ...]
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    spans: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image: Image | None = None

    @property
    def sight(self) -> Sight:
        """What its positions see."""
        return sight_of(self.image)

    @property
    def image_bytes(self) -> int:
        """Memory that its image takes, as a file and while it is prepared."""
        return 0 if self.image is None else len(self.image.file) + self.image.bytes


class Content(Protocol):
    """What the model reads: a prompt, or a run of one."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its tokens."""

    @property
    def image(self) -> Image | None:
        """Its image."""


def content_of(one: Content) -> tuple[tuple[int, ...], bytes]:
    """What tells prompts apart: the tokens, and the image's digest."""
    return one.tokens, b"" if one.image is None else one.image.digest


def differing(one: Content, other: Content) -> tuple[int, ...]:
    """The positions where prompts of one length differ: in their tokens, or in what they see of their images."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=True))
    found = {number for number, (token, replacement) in pairs if token != replacement}
    if content_of(one)[1] != content_of(other)[1]:
        for image in (one.image, other.image):
            found.update(() if image is None else image.arrangement.positions)
    return tuple(sorted(found))


def first_difference(one: Content, other: Content) -> int:
    """The first position where what a model makes of prompts of one length can differ; their length if none can."""
    found = differing(one, other)
    if not found:
        return len(one.tokens)
    return min(sight_of(some.image).begins(found[0]) for some in (one, other))


def overlapping(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    """The positions of the tokens that have characters from `start` to before `end`."""
    return tuple(i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > start)


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured; with a contrast the logit is the difference of the two."""

    token: int
    contrast: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What every question asks of the unchanged run: its prediction at `position`, without targets its own."""

    prompt: Prompt
    targets: tuple[Target, ...]
    position: int
    top_k: int

    @property
    def tokens(self) -> int:
        """The length of the prompt."""
        return len(self.prompt.tokens)

    @property
    def sight(self) -> Sight:
        """What the prompt's positions see."""
        return self.prompt.sight

    @property
    def columns(self) -> int:
        """How many targets are answered; where none is named, the run's own top prediction is the one."""
        return max(1, len(self.targets))
