"""Recent base runs, found by their content, within a limit of bytes; the least recently used are dropped first."""

import hashlib
import threading
from collections import OrderedDict

from torch import Tensor

from .runs import Base, State


class StateCache:
    """Can be used from any thread. A hit is a base that was found, a miss one that had to be run."""

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
        """Bytes that are held now."""
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
            # It may have grown since, by what was read of it.
            self._sizes[key] = state.bytes
            self._states.move_to_end(key)
            return state

    def shared(self, base: Base) -> None:
        """Counts a base that another caller is already running as found."""
        with self._lock:
            self.hits += 1
            self.positions_saved += len(base.tokens)

    def keep(self, base: Base, state: State) -> None:
        """Keeps a state, and drops the least recently used ones until all fit the limit."""
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
        """Drops everything."""
        with self._lock:
            self._states.clear()
            self._sizes.clear()


def key_of(base: Base) -> bytes:
    """Identifies a base by its tokens, its image, its corruption, and the size of the batch that it is computed in."""
    digest = hashlib.sha256(repr(base.tokens).encode())
    if base.image is not None:
        digest.update(b"image" + base.image.digest)
    edit = base.corruption
    if edit is not None:
        digest.update(repr((edit.positions, edit.change.kind, base.batch)).encode())
        if isinstance(edit.change.values, Tensor):
            digest.update(edit.change.values.float().cpu().contiguous().numpy().tobytes())
    return digest.digest()
