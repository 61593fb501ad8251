"""Many questions at a time, answered in their order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

AT_ONCE: Final = 8
"""Calls in progress. Enough that the server has the next question while this one's answer travels."""


def each(ask: Callable[[_Asked], _Answer], items: Iterable[_Asked], at_once: int = AT_ONCE) -> Iterator[_Answer]:
    """The answer to every item, in order. The first error ends it: what was not begun is not asked."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="sonde-question")
    try:
        yield from pool.map(ask, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
