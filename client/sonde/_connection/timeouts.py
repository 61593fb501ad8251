"""How long a call, and the wait for a server, may take."""

import enum
import math
import numbers
import time
from typing import Final, TypeAlias

from sonde.errors import DeadlineExceeded, InvalidSettings, NotServing

POLL_SECONDS: Final = 0.25
"""Between two attempts to reach a server that is starting."""
_ATTEMPT_SECONDS: Final = 10.0
"""How long one of these attempts may take."""
_LONGEST_SECONDS: Final = 27_000 * 3600.0
"""The longest that gRPC tells a server. It takes a deadline of some centuries for one in the past."""


class Default(enum.Enum):
    """Tells an argument that was left out from one that is None."""

    DEFAULT = "the client's default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
Timeout: TypeAlias = float | Default | None
"""Seconds; None sets no limit beyond the server's own; left out, the client's default applies."""


def check_timeout(seconds: float | None) -> float | None:
    """Return the timeout as gRPC can keep it; None is no limit.

    Raises:
        InvalidSettings: if it is not a number of seconds above 0.
    """
    if seconds is None:
        return None
    # NumPy's scalars are real numbers too; its booleans are none, and Python's are.
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real) or not seconds > 0:
        raise InvalidSettings(
            f"timeout: expected a number of seconds greater than 0, or None for no limit, got {seconds!r}"
        )
    try:
        given = float(seconds)
    except OverflowError:  # An integer of hundreds of digits.
        given = _LONGEST_SECONDS
    return None if given == math.inf else min(given, _LONGEST_SECONDS)


class Patience:
    """The wait for a server that is starting, attempt by attempt."""

    def __init__(self, timeout: float | None) -> None:
        """Begin to wait; `timeout` is in seconds, and None waits for ever."""
        seconds = check_timeout(timeout)
        self._end = math.inf if seconds is None else time.monotonic() + seconds

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
