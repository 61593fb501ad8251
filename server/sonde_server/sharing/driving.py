"""Advances what methods do, which waits for the model, on a thread that may wait.

Methods are coroutines and asynchronous generators. What they await are jobs, and each step hands over the job that it
waits for. So one thread can advance one question, as here, or many cases (cases.py).
"""

from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import suppress
from typing import Protocol, TypeVar

from .jobs import Job

T = TypeVar("T")
Steps = Generator[Job, None, T]


class Waiting(Protocol):
    """Who waits for jobs."""

    def wait(self, job: Job) -> object:
        """The result of a job. Raises what the job raised, and Stopped when nobody waits for it any more."""


def complete(work: Awaitable[T], session: Waiting) -> T:
    """Advance a coroutine to its end: its result. Errors while it waits are raised inside it."""
    steps: Steps[T] = work.__await__()
    try:
        job = steps.send(None)
        while True:
            try:
                session.wait(job)
            except Exception as error:  # noqa: BLE001 - it belongs to who awaits the job
                job = steps.throw(error)
            except BaseException:
                abandon(steps)
                raise
            else:
                job = steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


def drive(answers: AsyncGenerator[T, None], session: Waiting) -> Generator[T, None, None]:
    """Every answer of a method, computed as they are read."""
    try:
        while True:
            try:
                answer = complete(anext(answers), session)
            except StopAsyncIteration:
                return
            yield answer
    finally:
        close(answers)


class _Abandoned(BaseException):
    """Raised in a step that nobody advances any more."""


def abandon(steps: Steps[T]) -> None:
    """End a step that waits for a job."""
    # Not `close`, nor GeneratorExit, which does the same further in: an asynchronous generator would stay where it is.
    with suppress(_Abandoned):
        steps.throw(_Abandoned())


def close(answers: AsyncGenerator[T, None]) -> None:
    """End a method where it is. It must not wait for the model meanwhile."""
    with suppress(StopIteration):
        answers.aclose().__await__().send(None)
        raise RuntimeError("a method waits for the model although it was closed")
