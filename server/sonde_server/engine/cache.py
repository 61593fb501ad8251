"""Recent base runs, by content, within a byte budget; the least recently used go first."""

import hashlib
import threading
from collections import OrderedDict

from torch import Tensor

from .runs import Base, State


class StateCache:
    """Safe to ask from any thread. A hit is a base that was found, a miss one that had to be run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self.positions_saved = 0
        self._states: OrderedDict[bytes, State] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory that is held now."""
        return sum(self._sizes.values())

    def find(self, base: Base) -> State | None:
        """The state of a recent base run."""
        key = key_of(base)
        with self._lock:
            state = self._states.get(key)
            if state is None:
                self.misses += 1
                return None
            self.hits += 1
            self.positions_saved += len(base.tokens)
            # What has been read of it since is held as well.
            self._sizes[key] = state.bytes
            self._states.move_to_end(key)
            return state

    def shared(self, base: Base) -> None:
        """Counts a base that is being run already as found."""
        with self._lock:
            self.hits += 1
            self.positions_saved += len(base.tokens)

    def keep(self, base: Base, state: State) -> None:
        """Remembers a state, forgetting those unused for longest beyond the budget."""
        key, size = key_of(base), state.bytes
        with self._lock:
            if size > self.limit:
                return
            self._states[key], self._sizes[key] = state, size
            self._states.move_to_end(key)
            while sum(self._sizes.values()) > self.limit:
                oldest, _ = self._states.popitem(last=False)
                del self._sizes[oldest]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._states.clear()
            self._sizes.clear()


def key_of(base: Base) -> bytes:
    """What tells one base from another: its tokens, what corrupts them, and in what company it is computed."""
    digest = hashlib.sha256(repr(base.tokens).encode())
    edit = base.corruption
    if edit is not None:
        digest.update(repr((edit.positions, edit.change.kind, base.together)).encode())
        if isinstance(edit.change.values, Tensor):
            digest.update(edit.change.values.float().cpu().contiguous().numpy().tobytes())
    return digest.digest()
