"""Limits each caller's runs per second, with a token bucket that may go into debt.

A caller whose bucket is not empty may ask for a sweep of any size, and must then wait until the bucket has filled up
again. So the rate is kept in the long run without limiting the size of a single request; other limits do that.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TooManyRuns

BURST_SECONDS = 10.0
"""The size of a bucket: the runs of this many seconds."""
MOST_CALLERS = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class RunQuota:
    """The buckets of all callers. Thread-safe."""

    def __init__(self, runs_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A rate of 0 means no limit."""
        self._rate = runs_per_second
        self._most = runs_per_second * BURST_SECONDS
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: str, runs: int) -> None:
        """Count runs. Raises TooManyRuns, and counts nothing, while the caller is in debt."""
        if not self._rate:
            return
        with self._lock:
            self._take(caller, runs, self._clock())

    def _take(self, caller: str, runs: int, now: float) -> None:
        bucket = self._buckets.pop(caller, None) or _Bucket(self._most, now)
        bucket.left = min(self._most, bucket.left + self._rate * (now - bucket.at))
        bucket.at = now
        # The callers are in the order of their last request. The first one's bucket is full again: it can be forgotten.
        self._buckets[caller] = bucket
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.pop(next(iter(self._buckets)))
        if bucket.left <= 0:
            wait = (1 - bucket.left) / self._rate
            text = f"{caller} exceeded {self._rate:g} runs per second by {-bucket.left:.0f} runs"
            raise TooManyRuns(f"{text}; retry in {wait:.1f} s", wait, asked=runs, allowed=self._rate)
        bucket.left -= runs
