"""Faults of the machine: which ones the server survives, and how it finds out.

A lack of memory is temporary. After other faults the device may be unusable: CUDA, for example, answers every further
call of the process with the same error. One small pass of the model shows whether it is.
"""

import logging
import sys
import threading
from collections.abc import Callable

from ..errors import OutOfMemory, SondeServerError

RETRY_SECONDS = 2.0
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory", "Cannot allocate memory")

_log = logging.getLogger(__name__)


def translate(error: BaseException) -> SondeServerError | None:
    """Translate an error of a memory allocator to OutOfMemory; None for all other errors."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        # The cached blocks may be too fragmented to be of use.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemory(_text("device"), RETRY_SECONDS)
    from_allocator = isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)
    if isinstance(error, MemoryError) or from_allocator:
        return OutOfMemory(_text("machine"), RETRY_SECONDS)
    return None


def _text(whose: str) -> str:
    return (
        f"not enough memory on the {whose} for even one run of this request right now; "
        "retry later, or send fewer or shorter prompts"
    )


class Probe:
    """Finds out, after an unexpected error, whether the model still runs; reports once if it does not."""

    def __init__(self, attempt: Callable[[], None], lost: Callable[[], None]) -> None:
        """`attempt` is one small pass of the model. Errors of the server (busy, too late) do not count as failures."""
        self._attempt = attempt
        self._lost = lost
        self._lock = threading.Lock()

    def suspect(self, error: BaseException) -> None:
        """Check on another thread, unless a check is in progress."""
        if self._lock.acquire(blocking=False):
            threading.Thread(target=self._look, args=(error,), name="sonde-probe", daemon=True).start()

    def _look(self, error: BaseException) -> None:
        try:
            self._attempt()
        except SondeServerError:
            pass
        except BaseException as found:  # noqa: BLE001 - any error means that the model does not run
            if translate(found) is None:
                _log.critical("the model no longer runs (%s); this began with: %s", _line(found), _line(error))
                # The lock is never released: there is nothing left to check.
                self._lost()
                return
        self._lock.release()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
