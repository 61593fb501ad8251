"""Runs per second, by caller: a token bucket that may go into debt.

A caller with anything left may ask for a sweep of any size, and then has to wait until the bucket has filled up again.
So the rate holds in the long run, and no request is too large for it: another limit bounds the size of a request. Runs
are counted as `Cost.runs` counts them.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TooManyRuns

BURST_SECONDS = 10.0
"""How many seconds' worth of runs a full bucket holds."""
MOST_CALLERS = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RunQuota:
    """The buckets of all callers. Safe to use from several threads."""

    def __init__(self, runs_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A rate of 0 is no limit."""
        self._rate = runs_per_second
        self._most = runs_per_second * BURST_SECONDS
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: str, runs: int) -> None:
        """Takes runs from a caller's bucket. Raises TooManyRuns, and takes nothing, while the caller is in debt."""
        if not self._rate:
            return
        with self._lock:
            self._take(caller, runs, self._clock())

    def _take(self, caller: str, runs: int, now: float) -> None:
        bucket = self._buckets.pop(caller, None) or _Bucket(self._most, now)
        bucket.left = min(self._most, bucket.left + self._rate * (now - bucket.at))
        bucket.at = now
        # In the order of their last request: the first has had the most time to fill up, and may be forgotten.
        self._buckets[caller] = bucket
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.pop(next(iter(self._buckets)))
        if bucket.left <= 0:
            wait = (1 - bucket.left) / self._rate
            text = f"{caller} exceeded {self._rate:g} runs per second by {-bucket.left:.0f} runs"
            raise TooManyRuns(f"{text}; retry in {wait:.1f} s", wait, asked=runs, allowed=self._rate)
        bucket.left -= runs
