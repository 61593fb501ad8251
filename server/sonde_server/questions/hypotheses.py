"""Hypotheses of causal scrubbing: trees of places, what is claimed to matter of each, and how examples are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .answers import Integers
from .places import Site


@dataclass(frozen=True, slots=True)
class Node:
    """A place, and what is claimed to matter of it.

    parent: the node that its value goes into. site and positions: where it is, and in each example at which positions;
    the first node, the prediction, has none. direct: only what the parent reads of the stream sees it. labels and
    other_labels: one for each example; empty: any example will do.
    """

    parent: int | None
    site: Site | None
    positions: tuple[tuple[int, ...], ...]
    direct: bool
    labels: tuple[int, ...]
    other_labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A tree of nodes, parents first."""

    nodes: tuple[Node, ...]

    def children(self, number: int) -> list[int]:
        """The nodes whose values go into this one: those that are not direct, then the direct ones."""
        found = [child for child, node in enumerate(self.nodes) if node.parent == number and child]
        return sorted(found, key=lambda child: self.nodes[child].direct)

    def draws(self, reference: int, samples: int, seed: int, examples: int) -> Integers:
        """The examples of every run: [samples, nodes, 2], each node's own and the other."""
        uniform = np.random.RandomState(seed).random_sample((samples, len(self.nodes), 2))
        drawn = np.zeros((samples, len(self.nodes), 2), np.int32)
        inner = {node.parent for node in self.nodes[1:]}
        for number, node in enumerate(self.nodes):
            own, other = drawn[:, number, 0], drawn[:, number, 1]
            if node.parent is None:
                own[:] = reference
            else:
                own[:] = _pick(node.labels, drawn[:, node.parent, 0], uniform[:, number, 0], examples)
            other[:] = _pick(node.other_labels, own, uniform[:, number, 1], examples) if number in inner else own
        return drawn


def _pick(labels: Sequence[int], like: Integers, u: NDArray[np.float64], examples: int) -> NDArray[np.intp]:
    """For each run, one of the examples that have the label of `like`, which are counted in ascending order."""
    if not labels:
        return np.floor(u * examples).astype(np.intp)
    _, group, sizes = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    # Examples by label; within a label they stay in ascending order.
    ordered = np.argsort(group, kind="stable")
    first = np.cumsum(sizes) - sizes
    of = group[like]
    picked: NDArray[np.intp] = ordered[first[of] + np.floor(u * sizes[of]).astype(np.intp)]
    return picked
