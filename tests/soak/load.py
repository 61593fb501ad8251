"""Many callers for a long time, of whom many change their minds: every answer right, and nothing left behind."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import sonde

from tests.soak.serving import QUESTIONS, Holdings, ServerProcess, expected, is_right, wait_for

# How a call may end, besides with its answer, for what is done to it.
EXPECTED_ERRORS = (sonde.DeadlineExceeded, sonde.Cancelled, sonde.Busy)


@dataclass
class Report:
    """What came of it."""

    seconds: float = 0.0
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    holdings: list[Holdings] = field(default_factory=list)
    """After a warm-up, and then at even intervals; the last when all callers had gone."""

    @property
    def growth(self) -> float:
        """Resident memory in the end, as a multiple of that after the warm-up."""
        return self.holdings[-1].resident_bytes / self.holdings[0].resident_bytes

    def __str__(self) -> str:
        others = ", ".join(f"{count:,} {name}" for name, count in self.ended.most_common())
        sizes = ", ".join(f"{one.resident_bytes / 2**20:.0f}" for one in self.holdings)
        return (
            f"{self.right:,} right answers, {len(self.wrong)} wrong, in {self.seconds:.0f} s; "
            f"ended otherwise: {others}; "
            f"resident MiB over time: {sizes}; hooks in the end: {self.holdings[-1].hooks}"
        )


class _Callers:
    """All of them, until they are told to stop."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.seed = seed
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.report = Report()
        with sonde.Client(address) as client:
            self.known = expected(client)

    def call(self, number: int) -> None:
        """One caller: asks, and in a third of the cases gives up by a deadline, by cancelling, or by hanging up."""
        draws = random.Random(self.seed * 1000 + number)
        client = sonde.Client(self.address)
        while not self.over.is_set():
            name = draws.choice(list(QUESTIONS))
            fate = draws.choice(("wait", "wait", "wait", "wait", "deadline", "hang up"))
            timeout = draws.uniform(0.001, 0.3) if fate == "deadline" else 60.0
            if fate == "hang up":
                # Closing a client cancels what it has in progress, and its connection goes.
                threading.Timer(draws.uniform(0.0, 0.2), client.close).start()
            try:
                answer = QUESTIONS[name](client, timeout)
            except EXPECTED_ERRORS as error:
                self._count(type(error).__name__)
                self.over.wait(error.retry_after or 0.0 if isinstance(error, sonde.Busy) else 0.0)
            except sonde.SondeError as error:
                if fate == "hang up":
                    self._count("closed")
                else:
                    self._note(f"{name}: {type(error).__name__}: {error}")
            except ValueError as error:
                # gRPC's word for a channel that was closed before the call began.
                if fate == "hang up":
                    self._count("closed")
                else:
                    self._note(f"{name}: {error}")
            else:
                with self.lock:
                    self.report.right += is_right(answer, self.known[name])
                    if not is_right(answer, self.known[name]):
                        self.report.wrong.append(f"{name}: another answer")
            if fate == "hang up":
                client.close()
                client = sonde.Client(self.address)
        client.close()

    def _count(self, name: str) -> None:
        with self.lock:
            self.report.ended[name] += 1

    def _note(self, text: str) -> None:
        with self.lock:
            self.report.wrong.append(text)


def load(server: ServerProcess, *, callers: int, seconds: float, seed: int = 0, samples: int = 10) -> Report:
    """Asks from so many threads for so long. The first interval is the warm-up."""
    crowd = _Callers(server.address, seed)
    threads = [threading.Thread(target=crowd.call, args=(number,)) for number in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for sample in range(1, samples):
        crowd.over.wait(max(0.0, began + sample * seconds / samples - time.monotonic()))
        crowd.report.holdings.append(server.holdings())
    crowd.over.wait(max(0.0, began + seconds - time.monotonic()))
    crowd.over.set()
    for thread in threads:
        thread.join()
    crowd.report.seconds = time.monotonic() - began
    wait_for(lambda: server.holdings().waiting == 0)
    crowd.report.holdings.append(server.holdings())
    with sonde.Client(server.address) as client:
        for name, question in QUESTIONS.items():
            if not is_right(question(client, None), crowd.known[name]):
                crowd.report.wrong.append(f"{name}: another answer after the load")
    return crowd.report
