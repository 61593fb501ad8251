"""The results as Markdown tables and as JSON."""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.bench.contender import PEERS
from tests.bench.minimum import Rates
from tests.bench.profile import Profile
from tests.bench.rounds import DISTURBED, Timing
from tests.bench.targets import GROUPS, Target, fastest, targets


@dataclass(frozen=True, slots=True)
class Outcome:
    """One workload on one shape and length."""

    shape: str
    length: int
    workload: str
    timings: tuple[Timing, ...]
    token_layers: int
    readings: int
    minimum: float
    """Seconds of the counted minimum."""
    profile: Profile | None = None
    """Of Sonde in process."""
    judged: bool = True
    """Whether the targets are meant for it."""
    memory: tuple[tuple[int, int], ...] = ()
    """Pairs of a number of cases and the bytes by which the server's memory grew at most while it answered them."""

    @property
    def sonde(self) -> Timing:
        """Over the socket."""
        return next(timing for timing in self.timings if timing.entry.kind == "sonde")

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is to be reached."""
        return targets(self.workload, self.length) if self.judged else ()

    def ratio(self, group: str) -> float | None:
        """How many times as long the fastest of a group takes."""
        other = fastest(group, self.timings)
        return None if other is None else other.median / self.sonde.median


@dataclass(frozen=True, slots=True)
class Setting:
    """A shape and a length, and the rates of the plain model there."""

    shape: str
    title: str
    length: int
    rates: Rates


def markdown(settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> str:
    """Everything, a section for each shape and length."""
    head = (
        f"{_machine()}. A ratio says how many times as long the other takes. It is marked as disturbed where other "
        f"processes used more than {DISTURBED:.0%} of the machine in most samples of either side.\n"
    )
    parts = [head]
    for setting in settings:
        chosen = [one for one in outcomes if (one.shape, one.length) == (setting.shape, setting.length)]
        rates = setting.rates
        parts.append(f"## {setting.title}, {setting.length} tokens\n")
        parts.append(
            f"A plain forward pass of one prompt takes {1e3 * rates.forward:.0f} ms; in a large one a position takes "
            f"{1e6 * rates.token_layer:.1f} µs a block, and {1e3 * rates.reading:.2f} ms to be unembedded.\n"
        )
        parts += [*_ratios(chosen), ""]
        parts += [*_times(chosen), ""]
        parts += [_memory(one) for one in chosen if one.memory]
        if profiles := [one.profile.line() for one in chosen if one.profile]:
            parts.append("Where the time of Sonde in process goes, from a profile of the model's thread:\n")
            parts += [*(f"- {line}" for line in profiles), ""]
    return "\n".join(parts)


def _memory(outcome: Outcome) -> str:
    grown = ", ".join(f"{size / 2**20:.0f} MiB for {cases:,} cases" for cases, size in outcome.memory)
    return f"While it answered {outcome.workload}, the memory of Sonde's server grew by at most {grown}.\n"


def _ratios(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| workload | Sonde | compared with | its time | ratio | target | |"
    yield "|---|---:|---|---:|---:|---:|---|"
    for outcome in outcomes:
        wanted = {target.group: target.ratio for target in outcome.targets}
        for group, title in GROUPS.items():
            other, ratio = fastest(group, outcome.timings), outcome.ratio(group)
            if other is None or ratio is None or (group not in wanted and group in ("peer", "loop")):
                continue
            target = wanted.get(group)
            # A target of less than 1 allows Sonde to take longer.
            verdict = "" if target is None else "reached" if ratio >= target else "missed"
            if other.disturbed or outcome.sonde.disturbed:
                verdict = f"{verdict} (disturbed)".strip()
            name = title if other.entry.contender.name == title else f"{title}: {other.entry.contender.name}"
            yield (
                f"| {outcome.workload} | {_seconds(outcome.sonde.median)} | {name} | {_seconds(other.median)} "
                f"| {ratio:.2f} | {'' if target is None else f'{target:.3g}'} | {verdict} |"
            )
        target, ratio = wanted.get("minimum"), outcome.minimum / outcome.sonde.median
        verdict = "" if target is None else "reached" if ratio >= target else "missed"
        yield (
            f"| {outcome.workload} | {_seconds(outcome.sonde.median)} | the counted minimum: {outcome.token_layers:,} "
            f"token-layers, {outcome.readings:,} readings | {_seconds(outcome.minimum)} "
            f"| {ratio:.2f} | {'' if target is None else f'{target:g}'} | {verdict} |"
        )


def _times(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| workload | contender | median | all samples | measured on | largest difference / spread | disturbed |"
    yield "|---|---|---:|---|---|---:|---:|"
    for outcome in outcomes:
        for timing in sorted(outcome.timings, key=lambda one: one.median):
            samples = ", ".join(_seconds(sample.seconds) for sample in timing.samples)
            part = "all" if timing.part == timing.cells else f"{timing.part} of {timing.cells} cells"
            worst = max(sample.disturbance for sample in timing.samples)
            name, median = timing.entry.contender.name, _seconds(timing.median)
            yield (
                f"| {outcome.workload} | {name} | {median} | {samples} | {part} | {timing.error:.1e} | {worst:.0%} |"
            )


def omissions(outcomes: Sequence[Outcome]) -> list[str]:
    """Who left out what, and why."""
    entries = [timing.entry for one in outcomes for timing in one.timings if timing.entry.kind in PEERS]
    contenders = {entry.contender.name: entry.contender for entry in entries}
    measured = {one.workload for one in outcomes}
    lines = []
    for title, contender in contenders.items():
        for reason in dict.fromkeys(contender.omitted.values()):
            without = [name for name, why in contender.omitted.items() if why == reason and name in measured]
            if without:
                lines.append(f"{title} takes no part in {', '.join(without)}: {reason}.")
    return lines


def write_json(path: Path, settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> None:
    """All numbers, samples included."""
    document = {
        "machine": _machine(),
        "settings": [asdict(setting) for setting in settings],
        "outcomes": [
            {
                "shape": one.shape,
                "length": one.length,
                "workload": one.workload,
                "token_layers": one.token_layers,
                "readings": one.readings,
                "minimum_seconds": one.minimum,
                "memory": [list(pair) for pair in one.memory],
                "profile": None if one.profile is None else asdict(one.profile),
                "ratios": {group: one.ratio(group) for group in GROUPS},
                "targets": {target.group: target.ratio for target in one.targets},
                "contenders": [
                    {
                        "name": timing.entry.contender.name,
                        "kind": timing.entry.kind,
                        "median_seconds": timing.median,
                        "samples": [asdict(sample) for sample in timing.samples],
                        "cells_measured": timing.part,
                        "cells": timing.cells,
                        "largest_difference": timing.error,
                    }
                    for timing in one.timings
                ],
            }
            for one in outcomes
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _machine() -> str:
    import transformers

    return (
        f"{_processor()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _processor() -> str:
    """Its name, with what torch uses of it: ratios differ between processors."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.exists() else []
    known = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = known.get("model name", platform.machine()).strip()
    family = f" (family {known['cpu family'].strip()}, model {known['model'].strip()})" if "cpu family" in known else ""
    return f"{name}{family}, {torch.backends.cpu.get_cpu_capability()}"


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1.0 else f"{seconds:.2f} s" if seconds < 100.0 else f"{seconds:.0f} s"
