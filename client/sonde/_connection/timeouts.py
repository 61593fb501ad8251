"""How long a call, and the wait for a server, may take."""

import enum
import math
import time
from typing import Final, TypeAlias

from sonde.errors import DeadlineExceeded, InvalidSettings, NotServing

POLL_SECONDS: Final = 0.25
"""Between two attempts to reach a server that is starting."""
_ATTEMPT_SECONDS: Final = 10.0
"""How long one of these attempts may take."""


class Default(enum.Enum):
    """Tells an argument that was left out from one that is None."""

    DEFAULT = "the client's default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
Timeout: TypeAlias = float | Default | None
"""Seconds; None sets no limit beyond the server's own; left out, the client's default applies."""


def check_timeout(seconds: float | None) -> float | None:
    """Return the timeout if it can be kept.

    Raises:
        InvalidSettings: if it is not above 0.
    """
    if seconds is not None and not seconds > 0:
        raise InvalidSettings(f"timeout: {seconds} was given; it is a number of seconds above 0, or None")
    return seconds


class Patience:
    """The wait for a server that is starting, attempt by attempt."""

    def __init__(self, timeout: float | None) -> None:
        """Begin to wait; `timeout` is in seconds, and None waits for ever."""
        self._end = math.inf if timeout is None else time.monotonic() + timeout

    @property
    def seconds(self) -> float:
        """How long the next attempt may take."""
        return min(max(self._end - time.monotonic(), POLL_SECONDS), _ATTEMPT_SECONDS)

    def failed(self, error: NotServing | DeadlineExceeded) -> None:
        """Take note of an attempt that failed.

        Raises:
            NotServing: if there is no time for another one.
        """
        if time.monotonic() + POLL_SECONDS >= self._end:
            raise NotServing(str(error), reason=error.reason, metadata=error.metadata) from None
