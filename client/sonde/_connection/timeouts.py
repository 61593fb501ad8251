"""Timeouts of calls, and waiting for a server to start."""

import enum
import math
import numbers
import time
from typing import Final, TypeAlias

from sonde.errors import DeadlineExceeded, InvalidSettings, NotServing

POLL_SECONDS: Final = 0.25
"""The pause between two attempts to reach a server that is starting."""
_ATTEMPT_SECONDS: Final = 10.0
"""The longest time that one of these attempts may take."""
_LONGEST_SECONDS: Final = 27_000 * 3600.0
"""The longest timeout that gRPC can send. It mistakes a deadline in some centuries for one that has passed."""


class Default(enum.Enum):
    """Distinguishes an argument that was left out from None."""

    DEFAULT = "the client's default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
Timeout: TypeAlias = float | Default | None
"""Seconds; None sets no limit beyond the server's own; left out, the client's default applies."""


def check_timeout(seconds: float | None) -> float | None:
    """Return the timeout in the range that gRPC can send; None, for no limit, if it is infinite.

    Raises:
        InvalidSettings: if it is not a number of seconds above 0.
    """
    if seconds is None:
        return None
    # NumPy's scalars are real numbers too. Its booleans are not, but Python's are.
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real) or not seconds > 0:
        raise InvalidSettings(
            f"timeout: expected a number of seconds greater than 0, or None for no limit, got {seconds!r}"
        )
    try:
        given = float(seconds)
    except OverflowError:  # An integer of hundreds of digits.
        given = _LONGEST_SECONDS
    return None if given == math.inf else min(given, _LONGEST_SECONDS)


class Deadline:
    """The time of one call of the client, which may send several requests."""

    def __init__(self, seconds: float | None) -> None:
        """Begin to count; None sets no limit."""
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def seconds(self) -> float | None:
        """What is left for the next request; never so little that gRPC refuses it."""
        return None if self._end is None else max(self._end - time.monotonic(), 1e-3)


class Patience:
    """Decides how long to wait for a server that is starting."""

    def __init__(self, timeout: float | None) -> None:
        """Begin to wait for `timeout` seconds; None waits forever."""
        seconds = check_timeout(timeout)
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def seconds(self) -> float:
        """The timeout of the next attempt."""
        return min(max(self._end - time.monotonic(), POLL_SECONDS), _ATTEMPT_SECONDS)

    def failed(self, error: NotServing | DeadlineExceeded) -> None:
        """Report that an attempt failed.

        Raises:
            NotServing: if there is no time for another attempt.
        """
        if time.monotonic() + POLL_SECONDS >= self._end:
            raise NotServing(str(error), reason=error.reason, metadata=error.metadata) from None
