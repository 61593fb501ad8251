"""What a family adds to plain attention."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """The scale of the scores, a window of keys, a cap on the scores."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
