"""Progress on standard error, drawn by rich if it is installed."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

Progress: TypeAlias = bool | Callable[[int, int], object]
"""True for a line on standard error, or a function that is called with (done, total)."""
_SOON: Final = 1.0
"""How many seconds pass before the time that is left is estimated."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How much of a call is done."""

    done: int = 0
    total: int = 0
    cases_done: int = 0
    cases: int = 0
    """0 if there is one prompt."""


class Reporter(Protocol):
    """Shows progress."""

    def update(self, steps: Steps) -> None:
        """Show how much is done."""

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


def in_words(steps: Steps, seconds: float) -> str:
    """How much is done, and how long the rest takes: `37 of 100 cases, 12,000 of 33,000 steps, 3 min left`."""
    said = f"{steps.done:,} of {steps.total:,}"
    if steps.cases:
        said = f"{steps.cases_done:,} of {steps.cases:,} cases, {said} steps"
    if 0 < steps.done < steps.total and seconds >= _SOON:
        said += f", {_duration(seconds * (steps.total - steps.done) / steps.done)} left"
    return said


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class _Silent:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def update(self, steps: Steps) -> None:
        pass

    def close(self) -> None:
        pass

    def _said(self, steps: Steps) -> str:
        return in_words(steps, time.monotonic() - self._began)


class _Function(_Silent):
    def __init__(self, function: Callable[[int, int], object]) -> None:
        super().__init__()
        self._function = function

    def update(self, steps: Steps) -> None:
        self._function(steps.done, steps.total)


class _Line(_Silent):
    """One line that is overwritten."""

    _WIDTH = 30

    def __init__(self) -> None:
        super().__init__()
        self._written = False

    def update(self, steps: Steps) -> None:
        filled = self._WIDTH * steps.done // max(steps.total, 1)
        bar = "█" * filled + "░" * (self._WIDTH - filled)
        sys.stderr.write(f"\r\x1b[K{bar} {self._said(steps)}")
        sys.stderr.flush()
        self._written = True

    def close(self) -> None:
        if self._written:
            sys.stderr.write("\n")


class _Lines(_Silent):
    """For a log: one line for each tenth of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._tenth = -1

    def update(self, steps: Steps) -> None:
        tenth = 10 * steps.done // max(steps.total, 1)
        if tenth > self._tenth:
            self._tenth = tenth
            sys.stderr.write(f"{self._said(steps)}\n")


class _Rich(_Silent):
    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._task = self._bars.add_task("", total=None)
        self._bars.start()

    def update(self, steps: Steps) -> None:
        self._bars.update(self._task, completed=steps.done, total=steps.total, description=self._said(steps))

    def close(self) -> None:
        self._bars.stop()
