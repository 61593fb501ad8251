"""Prompts, and the target tokens whose prediction is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from sonde._ask.indices import index
from sonde.errors import InvalidRequest


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
        try:
            ids = np.asarray(self.input)
        except (TypeError, ValueError) as error:
            raise InvalidRequest.at("prompt", f"expected text or token ids: {error}") from None
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidRequest.at(
                "prompt", f"expected one sequence of token ids, got an array of {ids.dtype} {list(ids.shape)}"
            )
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
    if isinstance(given, str | Target | SupportsIndex) and not isinstance(given, np.ndarray):
        return (_as_target(given),)
    return tuple(_as_target(entry) for entry in given)


def _as_target(given: TargetLike) -> Target:
    if isinstance(given, Target):
        return given
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InvalidRequest.at("targets", f"expected a pair (target, contrast), got {given!r}")
        return Target(*given)
    return Target(given)
