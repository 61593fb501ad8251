"""Advances what methods do, which waits for the model, on a thread that may wait.

Methods are coroutines and asynchronous generators. What they await are jobs, and each step hands over the job that it
waits for. So one thread can advance one question, as here, or many.
"""

from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import suppress
from typing import Protocol, TypeVar

from .jobs import Job

T = TypeVar("T")


class Waiting(Protocol):
    """Who waits for jobs."""

    def wait(self, job: Job) -> object:
        """The result of a job. Raises what the job raised, and Stopped when nobody waits for it any more."""


def complete(work: Awaitable[T], session: Waiting) -> T:
    """Advance a coroutine to its end: its result. Errors while it waits are raised inside it."""
    steps = work.__await__()
    try:
        job = steps.send(None)
        while True:
            try:
                session.wait(job)
            except Exception as error:  # noqa: BLE001 - it belongs to who awaits the job
                job = steps.throw(error)
            else:
                job = steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


def drive(answers: AsyncGenerator[T, None], session: Waiting) -> Iterator[T]:
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


def close(answers: AsyncGenerator[T, None]) -> None:
    """End a method where it is. It must not wait for the model meanwhile."""
    with suppress(StopIteration):
        answers.aclose().__await__().send(None)
        raise RuntimeError("a method waits for the model although it was closed")
