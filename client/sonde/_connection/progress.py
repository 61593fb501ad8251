"""Progress on standard error, drawn by rich if it is installed."""

import sys
from collections.abc import Callable
from typing import Protocol, TypeAlias

Progress: TypeAlias = bool | Callable[[int, int], object]
"""True for a line on standard error, or a function that is called with (done, total)."""


class Reporter(Protocol):
    """Shows progress."""

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` units of work are done."""

    def close(self) -> None:
        """Finish the line."""


def reporter(progress: Progress) -> Reporter:
    """Return the reporter for a call's argument `progress`."""
    if callable(progress):
        return _Function(progress)
    if not progress:
        return _Silent()
    if sys.stderr.isatty():
        try:
            return _Rich()
        except ImportError:
            return _Line()
    return _Lines()


class _Silent:
    def update(self, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Function(_Silent):
    def __init__(self, function: Callable[[int, int], object]) -> None:
        self._function = function

    def update(self, done: int, total: int) -> None:
        self._function(done, total)


class _Line(_Silent):
    """One line that is overwritten."""

    _WIDTH = 30

    def __init__(self) -> None:
        self._written = False

    def update(self, done: int, total: int) -> None:
        filled = self._WIDTH * done // max(total, 1)
        bar = "█" * filled + "░" * (self._WIDTH - filled)
        sys.stderr.write(f"\r\x1b[K{bar} {done:,} of {total:,}")
        sys.stderr.flush()
        self._written = True

    def close(self) -> None:
        if self._written:
            sys.stderr.write("\n")


class _Lines(_Silent):
    """For a log: one line for each tenth of the work."""

    def __init__(self) -> None:
        self._tenth = -1

    def update(self, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > self._tenth:
            self._tenth = tenth
            sys.stderr.write(f"{done:,} of {total:,}\n")


class _Rich(_Silent):
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._task = self._bars.add_task("", total=None)
        self._bars.start()

    def update(self, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._bars.stop()
