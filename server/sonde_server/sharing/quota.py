"""Runs a second, by caller: a token bucket that may go into debt.

A caller with anything left may ask for a sweep of any size, and then waits until what it took has flowed back. So the
rate holds in the long run, and no request is too large for it; how large one may be is another limit's business.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TooManyRuns

BURST_SECONDS = 10.0
"""A caller that was quiet for so long has that many seconds' runs at its disposal."""
MOST_CALLERS = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RunQuota:
    """The buckets of all callers. Threads may share it."""

    def __init__(self, runs_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a rate (0) there is no limit."""
        self._rate = runs_per_second
        self._most = runs_per_second * BURST_SECONDS
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: str, runs: int) -> None:
        """Counts runs. Raises TooManyRuns, and counts nothing, while the caller is in debt."""
        if not self._rate:
            return
        with self._lock:
            self._take(caller, runs, self._clock())

    def _take(self, caller: str, runs: int, now: float) -> None:
        bucket = self._buckets.pop(caller, None) or _Bucket(self._most, now)
        bucket.left = min(self._most, bucket.left + self._rate * (now - bucket.at))
        bucket.at = now
        # The one that asked last stands last; the one that was quiet for longest is full again, and may be forgotten.
        self._buckets[caller] = bucket
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.pop(next(iter(self._buckets)))
        if bucket.left <= 0:
            wait = (1 - bucket.left) / self._rate
            text = f"{caller} has asked for {-bucket.left:.0f} runs more than its {self._rate:g} runs a second"
            raise TooManyRuns(f"{text}; come back in {wait:.1f} s", wait, asked=runs, allowed=self._rate)
        bucket.left -= runs
