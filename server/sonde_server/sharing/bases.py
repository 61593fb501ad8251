"""Base runs that are under way, so that two callers who ask about the same prompt at once have it run once."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine import Base, State
from ..engine.cache import StateCache

if TYPE_CHECKING:
    from .scheduler import Portion


@dataclass(frozen=True, slots=True, eq=False)
class Starting:
    """A base run that has been handed in, or will be with its session's next job."""

    base: Base
    state: State
    portion: "Portion"


class Bases:
    """What has been begun and is not in the cache yet, by content. Safe to ask from any thread."""

    def __init__(self, cache: StateCache) -> None:
        self._cache = cache
        self._begun: dict[bytes, Starting] = {}
        self._lock = threading.Lock()

    def claim(self, key: bytes, mine: Starting) -> State | Starting:
        """The state where it is kept, another's run where one is under way, and else `mine`, which is now to be run."""
        with self._lock:
            begun = self._begun.get(key)
            if begun is not None:
                self._cache.shared(mine.base)
                return begun
            kept = self._cache.find(mine.base)
            if kept is None:
                self._begun[key] = mine
                return mine
            return kept

    def release(self, key: bytes, one: Starting) -> None:
        """It has been kept, or came to nothing."""
        with self._lock:
            if self._begun.get(key) is one:
                del self._begun[key]
