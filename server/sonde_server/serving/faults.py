"""Faults of the machine: which of them a server survives, and how it finds out that it does not.

Memory that is short is a matter of the moment. After a fault of another kind the device may be poisoned: CUDA, for
one, answers every further call of the process with the same error. Whether it is, one small pass of the model shows.
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
    """What an error of the allocators is in our terms; None for all other errors."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        # What was cut into pieces that do not fit together can be put together again.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return OutOfMemory(_text("device"), RETRY_SECONDS)
    from_allocator = isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)
    if isinstance(error, MemoryError) or from_allocator:
        return OutOfMemory(_text("machine"), RETRY_SECONDS)
    return None


def _text(whose: str) -> str:
    return (
        f"the {whose}'s memory does not hold what a single run of this needs at the moment; "
        "come back later, or ask for fewer or shorter prompts"
    )


class Probe:
    """Finds out, after an unexpected error, whether the model can still run; says so once if it cannot."""

    def __init__(self, attempt: Callable[[], None], lost: Callable[[], None]) -> None:
        """`attempt` is one small pass of the model: its own errors count, those of the server's (busy, late) do not."""
        self._attempt = attempt
        self._lost = lost
        self._lock = threading.Lock()

    def suspect(self, error: BaseException) -> None:
        """Has a look in a thread of its own; one at a time is enough."""
        if self._lock.acquire(blocking=False):
            threading.Thread(target=self._look, args=(error,), name="sonde-probe", daemon=True).start()

    def _look(self, error: BaseException) -> None:
        try:
            self._attempt()
        except SondeServerError:
            pass
        except BaseException as found:  # noqa: BLE001 - whatever it is, the model does not run
            if translate(found) is None:
                _log.critical("the model does not run any more (%s), since: %s", _line(found), _line(error))
                # The lock is never released: nothing is left to find out.
                self._lost()
                return
        self._lock.release()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
