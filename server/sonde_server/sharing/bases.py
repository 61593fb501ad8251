"""Base runs in progress, so that a prompt that two callers ask about at the same time is run once."""

import threading

from ..engine import State
from ..engine.cache import StateCache
from .jobs import Starting


class Bases:
    """Base runs that have begun and are not in the cache yet, by content. Thread-safe."""

    def __init__(self, cache: StateCache) -> None:
        self._cache = cache
        self._begun: dict[bytes, Starting] = {}
        self._lock = threading.Lock()

    def claim(self, key: bytes, mine: Starting, *, later: bool = False) -> State | Starting:
        """Return the cached state, or the run that another question has begun, or else `mine`, which must then be run.

        In the last case `mine` is registered until it is released: now, or `later` by `begin`, so that nobody waits for
        a run that is held back meanwhile.
        """
        with self._lock:
            begun = self._begun.get(key)
            if begun is not None:
                self._cache.shared(mine.base)
                return begun
            kept = self._cache.find(mine.base)
            if kept is None:
                if not later:
                    self._begun[key] = mine
                return mine
            return kept

    def begin(self, key: bytes, mine: Starting) -> None:
        """Register a run that was claimed for later, unless another question has begun it meanwhile."""
        with self._lock:
            self._begun.setdefault(key, mine)

    def release(self, key: bytes, one: Starting) -> None:
        """Forget a run: it is in the cache now, or it failed."""
        with self._lock:
            if self._begun.get(key) is one:
                del self._begun[key]
