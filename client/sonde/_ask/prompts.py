"""What goes into the model, and the tokens whose prediction is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from sonde._ask.indices import index
from sonde.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or token ids, with an image for a model that sees.

    Client methods take a plain `str` or ids as well; this class is for images, and for ids among a patch's sources.
    """

    input: str | Sequence[SupportsIndex] | npt.NDArray[np.integer]
    """Text is tokenized by the server, with the tokenizer's special tokens. Ids, as [T] or [1, T], are taken as is."""
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
            raise InvalidRequest.at("prompt", f"neither text nor token ids: {error}") from None
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidRequest.at(
                "prompt", f"an array of {ids.dtype} {list(ids.shape)} was given; one sequence of token ids would do"
            )
        return tuple(index(int(entry), "prompt") for entry in ids)


PromptLike: TypeAlias = str | Sequence[SupportsIndex] | npt.NDArray[np.integer] | Prompt
TokenLike: TypeAlias = str | SupportsIndex
"""A token by its text, a leading space included, or by its id."""


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured. With a contrast its logit is the difference, target minus contrast."""

    token: TokenLike
    contrast: TokenLike | None = None


TargetLike: TypeAlias = TokenLike | tuple[TokenLike, TokenLike] | Target
Targets: TypeAlias = TargetLike | Sequence[TargetLike] | None
"""One target, or several; None: the run's own top prediction."""


def as_targets(given: Targets) -> tuple[Target, ...]:
    """The targets given: one token, or a sequence of tokens, `(target, contrast)` pairs and `Target`s."""
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
            raise InvalidRequest.at("targets", f"{given!r} was given; a pair is (target, contrast)")
        return Target(*given)
    return Target(given)
