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
        own_of = [_groups(node.labels, examples) for node in self.nodes]
        other_of = [_groups(node.other_labels, examples) for node in self.nodes]
        inner = {node.parent for node in self.nodes[1:]}
        for run in range(samples):
            for number, node in enumerate(self.nodes):
                like = reference if node.parent is None else int(drawn[run, node.parent, 0])
                u = uniform[run, number]
                own = reference if node.parent is None else _pick(own_of[number], node.labels, like, u[0])
                other = _pick(other_of[number], node.other_labels, own, u[1]) if number in inner else own
                drawn[run, number] = own, other
        return drawn


def _groups(labels: Sequence[int], examples: int) -> dict[int, NDArray[np.intp]]:
    """The examples of each label, in ascending order; without labels all have one."""
    if not labels:
        return {0: np.arange(examples)}
    values = np.array(labels)
    return {int(label): np.nonzero(values == label)[0] for label in np.unique(values)}


def _pick(groups: dict[int, NDArray[np.intp]], labels: Sequence[int], like: int, u: float) -> int:
    among = groups[labels[like] if labels else 0]
    return int(among[int(np.floor(u * len(among)))])
