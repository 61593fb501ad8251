"""Prompts, and the target tokens whose prediction is measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from sonde._ask.given import array, refusal, several
from sonde._ask.indices import index

_EXPECTED: Final = "text, or token ids as one sequence of integers"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text or token ids, with an image for a multimodal model.

    Client methods also accept a plain `str` or token ids. This class is needed for images, and for token ids among the
    sources of a patch.
    """

    input: str | Sequence[SupportsIndex] | npt.NDArray[np.integer]
    """The server tokenizes text and adds the tokenizer's special tokens. Ids, [T] or [1, T], are used unchanged."""
    image: bytes | None = None
    """PNG or JPEG."""

    @property
    def content(self) -> str | tuple[int, ...]:
        """The text, or the ids as a tuple.

        Raises:
            InvalidRequest: if the ids are not integers or are more than one sequence.
        """
        if isinstance(self.input, str):
            return self.input
        ids = array(self.input, "prompt", _EXPECTED)
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise refusal("prompt", _EXPECTED, self.input)
        return tuple(index(int(entry), "prompt") for entry in ids)


PromptLike: TypeAlias = str | Sequence[SupportsIndex] | npt.NDArray[np.integer] | Prompt
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
