"""Timing of the workloads over datasets, and of those about circuits.

Sonde answers all cases in one request. A peer whose whole answer would take long is measured on fewer cases, which are
evenly apart, and its time is scaled. What it answered is then compared with Sonde's answer to the same cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tests.bench.agreement import Disagreement, check
from tests.bench.case_workloads import TOLERANCES, CaseWorkload, compared
from tests.bench.circuit_workloads import CircuitWorkload
from tests.bench.contender import PEERS, Entry, ask
from tests.bench.disturbance import Sample, timed
from tests.bench.rounds import Timing

# Seconds that a sample of a peer may take: of one that batches, and of a loop.
BATCHED_SECONDS, LOOP_SECONDS = 60.0, 10.0
# The cells that are asked for first: of a loop one, of others enough to fill a batch.
FIRST = 8


@dataclass(frozen=True, slots=True)
class CasePlan:
    """How a workload over a dataset is measured."""

    name: str
    make: Callable[[int], CaseWorkload | CircuitWorkload]
    """From a number, which gives other cases each time."""
    rounds: int
    tolerances: Callable[[str], float] = TOLERANCES.__getitem__


def measure_cases(
    plan: CasePlan, entries: Sequence[Entry], numbers: Callable[[], int], say: Callable[[str], None]
) -> list[Timing]:
    """Times every contender that can do the workload; raises Disagreement when two answers differ."""
    able = [entry for entry in entries if plan.name not in entry.contender.omitted]
    timings = [_prepared(plan, entry, numbers) for entry in able]
    reference = next(timing for timing in timings if timing.entry.kind == "sonde")
    for number in range(plan.rounds):
        workload = plan.make(numbers())
        shift = number % len(timings)
        for timing in (*timings[shift:], *timings[:shift]):
            share = workload if timing.part == timing.cells else workload.share(timing.part)
            answer, sample = timed(partial(ask, timing.entry.contender, share))
            timing.samples.append(scaled(sample, len(workload), len(share)))
            say(f"  {timing.entry.contender.name}: {sample.seconds:.1f} s for {len(share)} of {len(workload)}")
            if timing is reference:
                continue
            expected, found = (compared(plan.name, each) for each in (ask(reference.entry.contender, share), answer))
            try:
                timing.error = max(timing.error, check(expected, found, plan.tolerances(plan.name)))
            except Disagreement as error:
                raise Disagreement(f"{plan.name}, {timing.entry.contender.name}: {error}") from None
        say(f"  round {number + 1} of {plan.rounds}")
    return timings


def scaled(sample: Sample, whole: int, share: int) -> Sample:
    """The time of all cells, from that of a share."""
    return replace(sample, seconds=sample.seconds * whole / share)


def _prepared(plan: CasePlan, entry: Entry, numbers: Callable[[], int]) -> Timing:
    """Lets a contender set up what is set up lazily, and finds how much of the workload fits a sample."""
    workload = plan.make(numbers())
    few = workload.share(1 if entry.loop else FIRST)
    ask(entry.contender, few)
    timing = Timing(entry, part=len(workload), cells=len(workload))
    if entry.kind in PEERS:
        _, sample = timed(partial(ask, entry.contender, plan.make(numbers()).share(len(few))))
        fit = (LOOP_SECONDS if entry.loop else BATCHED_SECONDS) * len(few) / sample.seconds
        timing.part = max(len(few), min(len(workload), int(fit)))
    return timing
