"""Causal scrubbing (Chan et al. 2022, alignmentforum.org/posts/JvZhhzycHu2Yd57RN): a run for each node and draw.

It follows the contract's words (causal_scrubbing.proto). A child that is not direct is an edit that its parent's whole
run sees; direct ones go along paths to what the parent reads (path_oracle.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tests.support.circuit_oracle import Values, set_to
from tests.support.oracle import UNLAYERED, Edit, Oracle, Site
from tests.support.path_oracle import READ_BY_HEADS, Path, along_paths

Draws = npt.NDArray[np.int64]
"""[nodes, 2] of one run: each node's own example and the other; with an axis of runs before it."""


@dataclass(frozen=True)
class Node:
    """A node of a hypothesis; the first one, the prediction, has neither parent nor site."""

    parent: int | None = None
    site: Site | None = None
    labels: tuple[int, ...] = ()
    other_labels: tuple[int, ...] = ()
    direct: bool = False


def draw(nodes: Sequence[Node], examples: int, reference: int, samples: int, seed: int) -> Draws:
    """The examples of every run: [samples, nodes, 2]."""
    uniform = np.random.RandomState(seed).random_sample([samples, len(nodes), 2])
    parents = {node.parent for node in nodes}
    drawn = np.zeros((samples, len(nodes), 2), np.int64)
    for run in range(samples):
        for number, node in enumerate(nodes):
            if node.parent is None:
                own = reference
            else:
                own = _one_like(drawn[run, node.parent, 0], node.labels, examples, uniform[run, number, 0])
            other = own
            if number in parents:
                other = _one_like(own, node.other_labels, examples, uniform[run, number, 1])
            drawn[run, number] = own, other
    return drawn


def _one_like(example: int, labels: Sequence[int], examples: int, u: float) -> int:
    alike = [one for one in range(examples) if not labels or labels[one] == labels[example]]
    return alike[int(np.floor(u * len(alike)))]


class ScrubbingOracle:
    """Hypotheses about the predictions of some examples, token ids of equal length."""

    def __init__(self, oracle: Oracle, examples: Sequence[Sequence[int]]) -> None:
        self.oracle = oracle
        self.examples = examples

    def logits(self, nodes: Sequence[Node], drawn: Draws) -> Tensor:
        """[T, V] of the prediction, for one draw [nodes, 2]."""
        return self._run(nodes, 0, drawn)["LOGITS", 0]

    def _value(self, nodes: Sequence[Node], number: int, drawn: Draws) -> Values:
        """The values of the run that a node's value is taken from."""
        if any(node.parent == number for node in nodes):
            return self._run(nodes, number, drawn)
        return self.oracle.run(self.examples[drawn[number, 0]]).values

    def _run(self, nodes: Sequence[Node], number: int, drawn: Draws) -> Values:
        """That of a node's other example, with its children's values in their places."""
        plain: list[Edit] = []
        direct: list[Edit] = []
        for child, node in enumerate(nodes):
            if node.parent == number and node.site is not None:
                values = self._value(nodes, child, drawn)
                (direct if node.direct else plain).extend(_in_place(node.site, values))
        ids = self.examples[drawn[number, 1]]
        if not direct:
            return self.oracle.run(ids, plain).values
        path = Path(tuple(self._reads(nodes[number].site)))
        return along_paths(self.oracle, ids, [(edit, path) for edit in direct], plain).values

    def _reads(self, site: Site | None) -> list[Site]:
        """What a place reads of the stream; positions are those of its site, except for keys and values of heads."""
        if site is None:
            return [Site("LOGITS")]
        if site.component in READ_BY_HEADS:
            return [site]
        if site.component not in ("HEAD_OUT", "ATTENTION_OUT"):
            return [Site("MLP_OUT", site.layers, (), site.positions)]
        heads = site.units if site.component == "HEAD_OUT" else ()
        group = self.oracle.heads // self.oracle.key_value_heads
        shared = tuple(sorted({head // group for head in heads}))
        query = Site("QUERY", site.layers, heads, site.positions)
        return [query, *(Site(name, site.layers, shared) for name in ("KEY", "VALUE"))]


def _in_place(site: Site, values: Values) -> list[Edit]:
    """Edits that give a site its values of another run."""
    layers = (0,) if site.component in UNLAYERED else site.layers
    return [
        set_to(Site(site.component, (layer,), site.units, site.positions), values[site.component, layer])
        for layer in layers
    ]
