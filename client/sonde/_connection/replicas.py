"""Checking that servers which take turns host the same model."""

import inspect
import warnings

from sonde._answers.model import Model
from sonde._answers.results import Provenance


class ReplicasDiffer(UserWarning):
    """The servers of one client host different models, or the same model in different data types.

    The `provenance` of each result names the model that computed it. To raise an error instead of a warning:
    `warnings.simplefilter("error", sonde.ReplicasDiffer)`.
    """


class Agreement:
    """Remembers which model answered first, and warns once about each other one."""

    def __init__(self, address: str, *, spread: bool) -> None:
        """Begin without an answer; if `spread` is False there is only one server, and nothing is compared."""
        self._address = address
        self._spread = spread
        self._first: tuple[str, str] | None = None
        self._text = ""
        self._told: set[tuple[str, str]] = set()

    def check(self, made: Model | Provenance) -> None:
        """Compare with the first answer. Device, attention and version may differ: they only affect rounding."""
        if not self._spread:
            return
        name = made.name if isinstance(made, Model) else made.model
        # The same model may have different paths on different machines, but it has one revision.
        this = made.revision or name, made.dtype
        text = f"{name} ({', '.join(filter(None, (made.revision, made.dtype)))})"
        if self._first is None:
            self._first = this
            self._text = text
        elif this != self._first and this not in self._told:
            self._told.add(this)
            warnings.warn(
                f"{self._address}: the servers host different models: {self._text} answered first, now {text}; use a "
                "separate client for each, or check `result.provenance`",
                ReplicasDiffer,
                stacklevel=_callers_level(),
            )


def _callers_level() -> int:
    """The number of frames from `check` up to the program that called this package."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("sonde."):
        level, frame = level + 1, frame.f_back
    return level
