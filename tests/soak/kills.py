"""A server that is killed at random moments while it is asked: typed errors, and the same values afterwards."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import sonde

from tests.soak.serving import QUESTIONS, Floats, expected, is_right, serving
from tests.support.process import free_port


@dataclass
class Report:
    """What came of it."""

    kills: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        others = ", ".join(f"{count:,} {name}" for name, count in self.ended.most_common())
        answers = f"{self.right:,} right answers, {len(self.wrong)} wrong"
        return f"{self.kills} kills: {answers}; errors, all retryable: {others}"


def kill_repeatedly(model: Path | str, *, kills: int, callers: int = 4, seed: int = 0) -> Report:
    """Kills and restarts the server on one port while callers go on asking."""
    draws = random.Random(seed)
    port = free_port()
    report, lock, over = Report(), threading.Lock(), threading.Event()
    with serving(model, port) as server, sonde.Client(server.address) as client:
        known = expected(client)
    threads = [
        threading.Thread(target=_ask, args=(f"127.0.0.1:{port}", number, known, report, lock, over))
        for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        with serving(model, port) as server:
            time.sleep(draws.uniform(0.0, 2.0))
            server.kill()
            report.kills += 1
    with serving(model, port) as server:
        # Everybody finds back.
        before = report.right
        end = time.monotonic() + 60
        while report.right < before + callers and time.monotonic() < end:
            time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join()
        with sonde.Client(server.address) as client:
            for name, question in QUESTIONS.items():
                if not is_right(question(client, None), known[name]):
                    report.wrong.append(f"{name}: another answer after the last restart")
    return report


def _ask(
    address: str,
    number: int,
    known: dict[str, Floats],
    report: Report,
    lock: threading.Lock,
    over: threading.Event,
) -> None:
    draws = random.Random(number)
    with sonde.Client(address, timeout=60) as client:
        while not over.is_set():
            name = draws.choice(list(QUESTIONS))
            try:
                answer = QUESTIONS[name](client, 10.0)
            except sonde.SondeError as error:
                with lock:
                    report.ended[type(error).__name__] += 1
                    if not error.retryable:
                        report.wrong.append(f"{name}: {type(error).__name__}: {error}")
            else:
                with lock:
                    report.right += is_right(answer, known[name])
                    if not is_right(answer, known[name]):
                        report.wrong.append(f"{name}: another answer")
