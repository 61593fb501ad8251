"""Whether the servers that answer in turn host the same model."""

import inspect
import warnings

from sonde._answers.model import Model
from sonde._answers.results import Provenance


class ReplicasDiffer(UserWarning):
    """Servers that a client asks in turn host different models, or in different data types.

    Each result says in `provenance` what made it. To have an error instead:
    `warnings.simplefilter("error", sonde.ReplicasDiffer)`.
    """


class Agreement:
    """Remembers what made the first numbers, and warns once of each that makes others."""

    def __init__(self, address: str, *, spread: bool) -> None:
        """`spread` says whether several may answer; else nothing is compared."""
        self._address = address
        self._spread = spread
        self._first: tuple[str, str] | None = None
        self._text = ""
        self._told: set[tuple[str, str]] = set()

    def check(self, made: Model | Provenance) -> None:
        """Compare with what answered before: device, attention and version may differ, which changes the rounding."""
        if not self._spread:
            return
        name = made.name if isinstance(made, Model) else made.model
        # One model may have another path on each machine, but its revision tells.
        this = made.revision or name, made.dtype
        text = f"{name} ({', '.join(filter(None, (made.revision, made.dtype)))})"
        if self._first is None:
            self._first = this
            self._text = text
        elif this != self._first and this not in self._told:
            self._told.add(this)
            warnings.warn(
                f"{self._address}: the servers host different models: {self._text} answered first, {text} now; ask "
                "each by a client of its own, or see in `result.provenance` which one answered",
                ReplicasDiffer,
                stacklevel=_callers_level(),
            )


def _callers_level() -> int:
    """How many frames above `check` the program is that called this package."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("sonde."):
        level, frame = level + 1, frame.f_back
    return level
