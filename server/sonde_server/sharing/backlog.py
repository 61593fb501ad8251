"""Limits what all accepted questions together may ask for, in runs and in bytes."""

import threading

from ..errors import InvalidQuestion, QueueFull, Violation
from .jobs import Owner

# How long a caller is told to wait before it retries, in seconds.
RETRY_AFTER = 1.0


class Backlog:
    """The runs of accepted questions that are not done yet, and the bytes that these questions hold. Thread-safe.

    `max_runs` and `max_bytes` limit the sums over all questions.
    """

    def __init__(self, max_runs: int, max_bytes: int) -> None:
        self.max_runs = max_runs
        self.max_bytes = max_bytes
        self._admitted: dict[Owner, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @property
    def runs(self) -> int:
        """Runs of accepted questions that are not done yet."""
        with self._lock:
            return sum(runs for runs, _ in self._admitted.values())

    @property
    def owners(self) -> list[Owner]:
        """The accepted questions."""
        with self._lock:
            return list(self._admitted)

    def admit(self, owner: Owner, runs: int, held: int) -> None:
        """Accept a question of `runs` runs that holds `held` bytes until it ends.

        Raises InvalidQuestion if it exceeds a limit by itself, QueueFull if it does so with the others.
        """
        with self._lock:
            others = [admitted for one, admitted in self._admitted.items() if one is not owner]
            for asked, allowed, taken, what in (
                (runs, self.max_runs, sum(one[0] for one in others), "runs"),
                (held, self.max_bytes, sum(one[1] for one in others), "bytes of kept activations"),
            ):
                if asked > allowed:
                    text = f"expected at most {allowed:,} {what}, got a request that needs {asked:,}"
                    raise InvalidQuestion([Violation("prompt", text)])
                if asked + taken > allowed:
                    text = f"this request needs {asked:,} {what}, but {taken:,} of {allowed:,} are in use; retry later"
                    raise QueueFull(text, RETRY_AFTER, asked=asked, allowed=allowed)
            self._admitted[owner] = (runs, held)

    def progress(self, owner: Owner, runs: int) -> None:
        """Count `runs` of a question's runs as done."""
        with self._lock:
            if owner in self._admitted:
                left, held = self._admitted[owner]
                self._admitted[owner] = (max(0, left - runs), held)

    def drop(self, owner: Owner) -> None:
        """Forget a question."""
        with self._lock:
            self._admitted.pop(owner, None)
