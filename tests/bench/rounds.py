"""Interleaved timing: round after round, every contender once, each round on a prompt that nobody has seen."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from tests.bench.agreement import Disagreement, check
from tests.bench.contender import PEERS, Entry, ask
from tests.bench.disturbance import Sample, timed
from tests.bench.workloads import Answer, Callers, OneNeuron, Workload

# Beyond this share of the machine in others' hands a sample is taken again, within so many seconds.
DISTURBED = 0.10
REPEATING_SECONDS = 10.0
REPEATS = 2
# Seconds that a peer's sample may take; from that follows the part of the cells that it is measured on. A batched
# peer is measured on all cells of a short prompt, where a batch holds many of them, and of a long one on a half, a
# quarter or an eighth where it must be: there a batch holds few, and stays as full.
LOOP_SECONDS = 2.0
BATCHED_SECONDS = 15.0
SMALLEST_SHARE = 8
SHORT = 16
# Cells that Sonde is asked for before anything is timed.
WARM_UP = 4
# A question of milliseconds is asked so often within one sample.
SHORT_REPEATS = 5


@dataclass(slots=True)
class Timing:
    """One contender's samples of one workload."""

    entry: Entry
    samples: list[Sample] = field(default_factory=list)
    part: int = 0
    """Cells measured; the time is scaled to all of them."""
    cells: int = 0
    error: float = 0.0
    """Largest difference to Sonde's answer, as a share of the answer's spread."""

    @property
    def disturbed(self) -> bool:
        """Whether others used the machine during most of the samples."""
        return float(np.median([sample.disturbance for sample in self.samples])) > DISTURBED

    @property
    def median(self) -> float:
        """Seconds for the whole workload."""
        return float(np.median([sample.seconds for sample in self.samples]))


@dataclass(frozen=True, slots=True)
class Plan:
    """How one workload is measured."""

    make: Callable[[int], Workload]
    """From the number of a prompt."""
    rounds: int
    tolerance: float
    numbers: "Numbers"
    disturbed: float = DISTURBED
    """The share of the machine in others' hands beyond which a sample is taken again."""


class Numbers:
    """Prompts' numbers, each given out once."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last


def measure(plan: Plan, entries: Sequence[Entry], name: str, say: Callable[[str], None]) -> list[Timing]:
    """Times every contender that can do the workload; raises Disagreement when two answers differ."""
    able = [entry for entry in entries if name not in entry.contender.omitted]
    timings = {entry.contender.name: Timing(entry) for entry in able}
    _warm_up(plan, timings)
    for number in range(plan.rounds):
        # Another one begins every round, so that nobody always runs behind the same other.
        shift = number % len(able)
        _round(plan, [timings[entry.contender.name] for entry in (*able[shift:], *able[:shift])])
        say(f"  round {number + 1} of {plan.rounds}")
    return list(timings.values())


def _warm_up(plan: Plan, timings: Mapping[str, Timing]) -> None:
    """Lets everybody set up what is set up lazily, and finds how many cells of a peer fit a sample."""
    for timing in timings.values():
        workload = plan.make(plan.numbers())
        contender = timing.entry.contender
        timing.part = timing.cells = len(workload)
        if isinstance(workload, OneNeuron | Callers):
            _prepare(timing.entry, workload)
            ask(contender, workload)
        elif timing.entry.loop:
            few = workload.part(_spread(timing.cells, 3))
            ask(contender, few)
            _, sample = timed(partial(ask, contender, few))
            timing.part = int(np.clip(len(few) * LOOP_SECONDS / sample.seconds, min(6, timing.cells), timing.cells))
        elif timing.entry.kind in PEERS:
            few = workload.part(_spread(timing.cells, timing.cells // SMALLEST_SHARE))
            _, sample = timed(partial(ask, contender, few))
            share = 1
            while (
                len(workload.tokens) > SHORT
                and share < SMALLEST_SHARE
                and sample.seconds * SMALLEST_SHARE / share > BATCHED_SECONDS
            ):
                share *= 2
            timing.part = timing.cells // share
        else:
            # The first few are of one position or of one block: a product of axes, as sweeps are.
            ask(contender, workload.part(range(WARM_UP)))


def _round(plan: Plan, timings: Sequence[Timing]) -> None:
    """Every contender once on one prompt; the answers must agree. A disturbed sample is taken again on another."""
    workload = plan.make(plan.numbers())
    answers: dict[str, Answer] = {}
    for timing in timings:
        chosen = _spread(len(workload), timing.part)
        answer, sample = _sample(plan, timing, workload, chosen)
        full = np.full((len(workload), *answer.shape[1:]), np.nan)
        if isinstance(workload, OneNeuron | Callers):
            full = answer
        else:
            full[chosen] = answer
        answers[timing.entry.contender.name] = full
        began = time.perf_counter()
        for _ in range(REPEATS):
            spent = time.perf_counter() - began
            if sample.disturbance <= plan.disturbed or spent > REPEATING_SECONDS:
                break
            _, again = _sample(plan, timing, plan.make(plan.numbers()), chosen)
            sample = min(sample, again, key=lambda one: one.disturbance)
        timing.samples.append(sample)
    _compare(plan, timings, answers)


def _sample(plan: Plan, timing: Timing, workload: Workload, chosen: Sequence[int]) -> tuple[Answer, Sample]:
    """One timing, scaled to the whole workload, and the answer to `workload`."""
    contender = timing.entry.contender
    if isinstance(workload, Callers):
        return timed(partial(ask, contender, workload))
    if isinstance(workload, OneNeuron):
        answers, samples = [], []
        for _ in range(SHORT_REPEATS):
            _prepare(timing.entry, workload)
            answer, sample = timed(partial(ask, contender, workload))
            answers.append(answer)
            samples.append(sample)
            made = plan.make(plan.numbers())
            assert isinstance(made, OneNeuron)
            workload = made
        middle = sorted(samples, key=lambda one: one.seconds)[len(samples) // 2]
        return answers[0], replace(middle, disturbance=float(np.median([one.disturbance for one in samples])))
    part = workload if timing.part == timing.cells else workload.part(chosen)
    answer, sample = timed(partial(ask, contender, part))
    return answer, replace(sample, seconds=sample.seconds * len(workload) / len(part))


def _prepare(entry: Entry, workload: OneNeuron | Callers) -> None:
    """Before a second question comes the first, untimed."""
    if isinstance(workload, OneNeuron) and workload.again:
        ask(entry.contender, replace(workload, again=False, neuron=workload.neuron + 1))


def _compare(plan: Plan, timings: Sequence[Timing], answers: Mapping[str, Answer]) -> None:
    reference = next(answers[timing.entry.contender.name] for timing in timings if timing.part == timing.cells)
    for timing in timings:
        name = timing.entry.contender.name
        try:
            timing.error = max(timing.error, check(reference, answers[name], plan.tolerance))
        except Disagreement as error:
            raise Disagreement(f"{name}: {error}") from None


def _spread(count: int, part: int) -> list[int]:
    """`part` of `count` numbers, evenly apart."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, part)).round()})
