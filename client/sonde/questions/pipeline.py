"""Concurrent requests whose answers arrive in order."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

AT_ONCE: Final = 8
"""The number of concurrent requests: enough for the server to have the next one while an answer is on its way."""


def each(ask: Callable[[_Asked], _Answer], items: Iterable[_Asked], at_once: int = AT_ONCE) -> Iterator[_Answer]:
    """Yield the answer to each item, in order. After an error, no new requests are sent."""
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="sonde-question")
    try:
        yield from pool.map(ask, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
