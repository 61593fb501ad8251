"""What the model's thread has done so far, and what waits for it: numbers for those who watch."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counted since the start, but for what waits and what is held, which are as of now."""

    waiting_runs: int
    """Runs that were accepted and are not done yet."""
    batches: int
    """Forward passes over several runs together."""
    rows: int
    """Runs in these batches."""
    token_layers: int
    """Positions x blocks that were computed."""
    token_layers_saved: int
    """Positions x blocks that recomputing every run in full would have taken beyond that."""
    cache_hits: int
    """Unchanged runs that were still known."""
    cache_misses: int
    """Those that had to be computed."""
    cache_bytes: int
    """What is kept of unchanged runs."""
    device_bytes: int
    """Memory of the device that is in use by this process; 0 on a CPU."""
    device_total_bytes: int
    """Memory that the device has; 0 on a CPU."""


def device_memory(device: Any) -> tuple[int, int]:
    """Bytes in use by this process and in all, of a torch device; (0, 0) for a CPU, whose memory is the process's."""
    torch = sys.modules["torch"]
    if device.type != "cuda":
        return 0, 0
    return int(torch.cuda.memory_reserved(device)), int(torch.cuda.get_device_properties(device).total_memory)
