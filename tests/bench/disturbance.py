"""How much of the machine others used while something was timed."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing."""

    seconds: float
    disturbance: float
    """Share of all cores' time that processes other than this one and its children used, 0 to 1."""


def timed(call: Callable[[], T]) -> tuple[T, Sample]:
    """Runs `call` and says how long it took, and how disturbed it was."""
    own, everyone, start = _own(), _everyone(), time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    others = (_everyone() - everyone) - (_own() - own)
    return result, Sample(seconds, max(0.0, others) / (seconds * (os.cpu_count() or 1)))


def _own() -> float:
    """Processor seconds of this process and its children."""
    this = psutil.Process()
    spent = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system
    return spent


def _everyone() -> float:
    """Processor seconds of the whole machine, what other machines on its host took included."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0))
