"""Circuits: runs in which receivers read the values of other prompts along the edges that are not kept.

Conmy et al., "Towards Automated Circuit Discovery for Mechanistic Interpretability" (2023, arXiv 2304.14997); Hanna,
Pezzelle, Belinkov, "Have Faith in Faithfulness" (2024, arXiv 2403.17806).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .edits import Edit
from .extents import Detoured
from .graph import Graph
from .places import Component, Place, Sized

Edges = NDArray[np.bool_]
"""Which edges: [receivers, senders]."""


@dataclass(frozen=True, slots=True, eq=False)
class Circuits:
    """One run for each size: it keeps that many of the edges, or nodes, from the first on.

    senders: their numbers [n]. receivers: theirs; None: nodes, which keep all their edges. sources: whose mean is read
    along the other edges; empty: zeros.
    """

    senders: NDArray[np.int64]
    receivers: NDArray[np.int64] | None
    sizes: tuple[int, ...]
    sources: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.sizes)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """None: a circuit is not made of edits."""
        return ()

    @property
    def edits_per_run(self) -> int:
        """None."""
        return 0

    @property
    def axes(self) -> None:
        """It has none."""
        return

    def missing(self, model: Sized) -> Iterator[Edges]:
        """The edges that each run does not keep."""
        every = Graph(model).edges()
        for size in self.sizes:
            gone = every.copy()
            if self.receivers is None:
                gone[:, self.senders[:size]] = False
            else:
                gone[self.receivers[:size], self.senders[:size]] = False
            yield gone


def detoured(missing: Edges, model: Sized, positions: tuple[int, ...], read: tuple[int, ...]) -> Detoured:
    """The places of a circuit: what writes, and what reads along missing edges.

    positions: where the prompts may differ; read: those where the logits are read.
    """
    cut = np.any(missing, axis=1)
    receivers = [
        Place(node.component, node.layer, read if node.component is Component.LOGITS else positions)
        for node, gone in zip(Graph(model).receivers(), cut, strict=True)
        if gone
    ]
    return Detoured(writers(model, positions), receivers) if receivers else Detoured()


def writers(model: Sized, positions: tuple[int, ...]) -> list[Place]:
    """What senders are values of: the stream that enters block 0, and what each block writes."""
    found = [Place(Component.RESIDUAL_PRE, 0, positions)]
    for layer in range(model.layers):
        found += [Place(component, layer, positions) for component in (Component.HEAD_OUT, Component.MLP_OUT)]
    return found
