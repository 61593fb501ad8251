"""What the model's thread has done so far, and what waits for it, for metrics."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start; `waiting_runs` and the bytes are current values."""

    waiting_runs: int
    """Runs of accepted requests that are not done yet."""
    batches: int
    """Forward passes over several runs together."""
    rows: int
    """Runs in these batches."""
    token_layers: int
    """Positions x blocks that were computed."""
    token_layers_saved: int
    """Positions x blocks that did not have to be computed because runs restart from kept states."""
    cache_hits: int
    """Unchanged runs that were found in the cache."""
    cache_misses: int
    """Unchanged runs that had to be computed."""
    cache_bytes: int
    """Bytes of the cache of unchanged runs."""
    device_bytes: int
    """Memory of the device that is in use by this process; 0 on a CPU."""
    device_total_bytes: int
    """Memory that the device has; 0 on a CPU."""


def device_memory(device: Any) -> tuple[int, int]:
    """Bytes of a torch device that this process uses, and its bytes in all; (0, 0) for a CPU."""
    torch = sys.modules["torch"]
    if device.type != "cuda":
        return 0, 0
    return int(torch.cuda.memory_reserved(device)), int(torch.cuda.get_device_properties(device).total_memory)
