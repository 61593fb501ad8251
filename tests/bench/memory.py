"""How much memory a server takes while it answers, beyond what it had."""

import threading
from collections.abc import Callable

import psutil

# Between two looks at the memory.
SECONDS = 0.02


def serving_process(address: str) -> psutil.Process:
    """The child of this process that listens on this address. Raises LookupError if there is none."""
    port = int(address.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        listening = (one for one in process.net_connections() if one.status == psutil.CONN_LISTEN)
        if any(one.laddr.port == port for one in listening):
            return process
    raise LookupError(f"no child of this process listens on port {port}")


def growth(process: psutil.Process, work: Callable[[], object]) -> int:
    """Bytes by which the resident memory of a process exceeds what it was, at most, while `work` runs."""
    before, done = process.memory_info().rss, threading.Event()
    most = [before]

    def watch() -> None:
        while not done.wait(SECONDS):
            most[0] = max(most[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        done.set()
        watching.join()
    return most[0] - before
