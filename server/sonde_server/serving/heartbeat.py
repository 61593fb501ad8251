"""Repeats the progress of long work, so that clients and proxies can tell it from a connection that is dead."""

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import replace
from typing import Final

from ..questions.answers import Answer, Progress

HEARTBEAT_SECONDS: Final = 1.0
"""How long a stream that has reported progress may be silent."""


class _Relay:
    """Hands answers from the thread that makes them to the one that sends them, one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answers: list[Answer] = []
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def run(self, answers: Iterator[Answer]) -> None:
        """Make all answers, each once the one before was taken."""
        try:
            for answer in answers:
                with self._changed:
                    self._answers.append(answer)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed or not self._answers)
                    if self._closed:
                        break
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that takes
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, seconds: float) -> Answer | None:
        """The next answer; None if there is none within `seconds`. Raises what the other thread raised.

        Raises StopIteration at the end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._answers, seconds)
            if self._answers:
                answer = self._answers.pop()
                self._changed.notify_all()
                return answer
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopIteration
            return None

    def close(self) -> None:
        """No more answers are wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def with_heartbeat(
    answers: Iterator[Answer],
    stop: Callable[[], None],
    runs_done: Callable[[], int],
    seconds: float = HEARTBEAT_SECONDS,
) -> Iterator[Answer]:
    """The answers, and the progress again whenever the next answer takes longer than `seconds`.

    Where a step of the progress is a run, `runs_done` says how far the work has come meanwhile.
    They are made on a thread of their own, which only waits for the model's. `stop` is called when no more answers are
    wanted, and has to end the work; this then waits until it has ended.
    """
    relay = _Relay()
    thread = threading.Thread(target=copy_context().run, args=(relay.run, answers), name="sonde-answers", daemon=True)
    thread.start()
    progress: Progress | None = None
    try:
        while True:
            try:
                answer = relay.take(seconds)
            except StopIteration:
                return
            if isinstance(answer, Progress):
                progress = _further(progress, answer.done, answer)
                yield progress
            elif answer is not None:
                yield answer
            elif progress is not None:
                progress = _further(progress, runs_done() if progress.runs else 0, progress)
                yield progress
    finally:
        relay.close()
        if thread.is_alive():
            stop()
            thread.join()


def _further(last: Progress | None, done: int, now: Progress) -> Progress:
    """The progress with this many steps done: never fewer than were reported, and never more than there are."""
    return replace(now, done=min(max(done, 0 if last is None else last.done), now.total))
