"""What Sonde over the socket is to reach, as ratios to its peers in the same run."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.rounds import Timing


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to the fastest of a group."""

    group: str
    ratio: float


# The groups: what a ratio is taken to.
GROUPS = {
    "library": "the fastest library",
    "loop": "the fastest library in its usual loop",
    "hand": "plain transformers, by hand",
    "script": "as published",
    "peer": "the fastest peer of all",
    "serial": "one request after the other",
    "minimum": "the counted minimum",
}

_SHORT, _LONG = "short", "long"
TARGETS: dict[tuple[str, str], tuple[Target, ...]] = {
    ("W1", _SHORT): (Target("library", 2.7), Target("script", 8.0)),
    ("W1", _LONG): (Target("library", 2.7), Target("script", 8.0)),
    ("W2", _SHORT): (Target("library", 8.0), Target("hand", 2.0), Target("loop", 75.0)),
    ("W2", _LONG): (Target("library", 60.0), Target("hand", 2.0), Target("loop", 500.0)),
    ("W3", _SHORT): (Target("library", 2.1), Target("loop", 10.0)),
    ("W3", _LONG): (Target("library", 2.0), Target("loop", 5.0)),
    ("W4 first", _SHORT): (Target("peer", 1.1),),
    ("W4 first", _LONG): (Target("peer", 1.1),),
    ("W4 again", _SHORT): (Target("peer", 2.5),),
    ("W4 again", _LONG): (Target("peer", 10.0),),
    ("W4 last", _SHORT): (Target("peer", 2.5),),
    ("W4 last", _LONG): (Target("peer", 10.0),),
    ("W5", _SHORT): (Target("serial", 2.0),),
    ("W5", _LONG): (Target("serial", 2.0),),
}
CASE_TARGETS: dict[str, tuple[Target, ...]] = {
    "W6": (Target("peer", 3.0), Target("loop", 30.0), Target("minimum", 0.8)),
    # At most 1.1 times as long.
    "W7": (Target("hand", 1 / 1.1),),
    "W8": (Target("peer", 3.0),),
    "W9": (Target("hand", 1.0),),
    "W10": (Target("script", 30.0),),
    "W11": (Target("script", 3.0),),
    "W12": (Target("script", 8.0),),
}


def targets(workload: str, length: int) -> tuple[Target, ...]:
    """Those of a workload on a prompt of 16 tokens or of 128, or on a dataset."""
    if workload in CASE_TARGETS:
        return CASE_TARGETS[workload]
    return TARGETS[workload, _SHORT if length <= 16 else _LONG]


def fastest(group: str, timings: Sequence[Timing]) -> Timing | None:
    """The fastest of a group, or None where nobody of it took part."""
    members = [timing for timing in timings if _belongs(timing, group)]
    return min(members, key=lambda timing: timing.median, default=None)


def _belongs(timing: Timing, group: str) -> bool:
    entry = timing.entry
    if group == "peer":
        return entry.kind in ("library", "hand", "script")
    if group == "loop":
        return entry.kind == "library" and entry.loop
    return entry.kind == group
