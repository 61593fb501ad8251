"""For which numbers of rows packed weights are faster on this processor, measured on the model's own layers.

On some processors a packed product of few rows takes half the time, on others it gains nothing or is slower. So the
products are timed when a model is loaded, and the choice follows from the times.
"""

import itertools
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)
Measure: TypeAlias = Callable[[Sequence[nn.Module], Sequence[nn.Module], int], float]
"""How many times as long some layers of one shape take plain as they take packed, for a number of rows."""

# Products of more rows are not timed, and left as they are.
MOST_ROWS = 512
# The numbers of rows that are timed, and those that each speaks for. One row is a case of its own, because MKL
# multiplies a vector without reordering the weights.
TIMED = {1: range(1, 2), 4: range(2, 8), 16: range(8, 32), 64: range(32, 128), 256: range(128, MOST_ROWS + 1)}
# A packed product is chosen if the plain one takes at least this many times as long. Less is not worth the memory.
GAIN = 1.1
# Layers of one shape are timed one after another, as in a forward pass, so many or until they have so many weights:
# the caches of a processor should hold few of them from one turn to the next.
LAYERS, WEIGHTS = 8, 1 << 24
# A turn multiplies about this often: where rows are many, fewer layers are timed. A layer that alone needs more than
# the second number is not timed: that would take longer than it can gain.
MULTIPLICATIONS, MOST_MULTIPLICATIONS = 1 << 28, 1 << 32
# How many pairs of a plain and a packed product are timed: for so many seconds, and longer if so few pairs count.
FEWEST_PAIRS, SECONDS, MOST_SECONDS = 4, 0.02, 0.2
MOST_TURNS = 10


def sample(layers: Sequence[Layer]) -> Sequence[Layer]:
    """The layers that are timed, of those of one shape."""
    return layers[: min(LAYERS, max(1, WEIGHTS // _weights(layers[0])))]


def faster_rows(plain: Sequence[nn.Module], packed: Sequence[nn.Module], measure: Measure) -> frozenset[int]:
    """The numbers of rows for which the packed layers are clearly faster. All layers have one shape."""
    found: set[int] = set()
    for rows, meant in TIMED.items():
        multiplications = rows * _weights(plain[0])
        if multiplications > MOST_MULTIPLICATIONS:
            break
        count = max(1, MULTIPLICATIONS // multiplications)
        if measure(plain[:count], packed[:count], rows) >= GAIN:
            found.update(meant)
    return frozenset(found)


def _weights(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel()


def interruptions() -> int:
    """How often a thread of this process had to leave its processor to others."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@torch.inference_mode()
def time_products(
    plain: Sequence[nn.Module],
    packed: Sequence[nn.Module],
    rows: int,
    clock: Callable[[], float] = time.perf_counter,
    interrupted: Callable[[], int] = interruptions,
) -> float:
    """Times the products, each packed one right after the plain one of the same layer.

    A pair during which the system took a processor away from this process does not count. Of the median of the pairs'
    ratios and the ratio of the best times, the smaller is given, and 0 if too few pairs count.
    """
    width = packed[0].width
    assert isinstance(width, int)
    inputs = torch.ones(rows, width)
    pairs: list[tuple[float, float]] = []
    began = clock()
    for one, other in itertools.islice(itertools.cycle(zip(plain, packed, strict=True)), MOST_TURNS * len(plain)):
        before = interrupted()
        start = clock()
        one(inputs)
        middle = clock()
        other(inputs)
        end = clock()
        if interrupted() == before:
            pairs.append((middle - start, end - middle))
        if end - began > (SECONDS if len(pairs) >= FEWEST_PAIRS else MOST_SECONDS):
            break
    if len(pairs) < FEWEST_PAIRS:
        return 0.0
    best = min(seconds for seconds, _ in pairs) / min(seconds for _, seconds in pairs)
    return min(best, median(seconds / packed_seconds for seconds, packed_seconds in pairs))
