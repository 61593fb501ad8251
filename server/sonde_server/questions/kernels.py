"""Which kernel computes attention: one rule, for the engine that attends, its memory, and the answer that names it."""

import enum
from collections.abc import Iterable

from .extents import Extent

# SDPA does not fill the CPU's vector units with fewer queries than this.
MANY_QUERIES = 32
# Up to this many keys are copied for a single row in less time than the operations on its scores take to be called.
FEW_KEYS = 256


class Kernel(enum.StrEnum):
    """A way to compute attention, by the name that transformers has for it."""

    SDPA = "sdpa"
    """Torch's fused kernel. Scores and patterns are never there."""
    EAGER = "eager"
    """Scores, softmax and the mix of values one by one."""


def kernels(queries: int, first: int, *, eager: bool) -> frozenset[Kernel]:
    """What may compute rows of this many queries, each over a prefix of `first` positions that it shares with others.

    `eager`: SDPA cannot compute these rows. Of two kernels, SDPA computes a row that is alone with its prefix: it gets
    a copy of the prefix's keys. For several rows that would be slower than to have their scores, unless they have many
    queries (measured on a CPU).
    """
    if eager:
        return frozenset({Kernel.EAGER})
    if not first or queries >= max(MANY_QUERIES, first):
        return frozenset({Kernel.SDPA})
    return frozenset({Kernel.SDPA, Kernel.EAGER} if first <= FEW_KEYS else {Kernel.EAGER})


def attention_of(model: str, runs: Iterable[Extent] = (), *, pairs: bool = False) -> str:
    """The kernels that an answer's numbers may come from, as its provenance names them.

    `model`: what computes a whole prompt; `runs`: what restarts from kept keys and values; `pairs`: scores or patterns
    are read or changed.
    """
    eager = model == Kernel.EAGER
    found = set(kernels(1, 0, eager=eager))
    if pairs:
        found.add(Kernel.EAGER)
    for run in runs:
        blocks = run.stop - run.start
        if blocks > 1:
            found |= kernels(run.end - run.first, run.first, eager=eager)
        if blocks > 0 and run.last:
            found |= kernels(len(run.last), run.first, eager=eager)
    return "+".join(kernel for kernel in Kernel if kernel in found)
