"""Circuit discovery: edges that make no difference are removed one after another, and the others are the circuit.

ACDC (Conmy et al. 2023, arXiv 2304.14997, algorithm 1). The cost is one run for each edge, from the block of its
receiver on. Edges of nodes that drop out are not tried, and need none; but some trials are made before it is known
whether they are needed, and those are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, Floats, Integers
from .circuits import Edges, detoured, writers
from .costs import FLOAT, Cost, detour_bytes, state_bytes
from .extents import Extent, Restarts, extent_of, rereading, token_layers
from .graph import READ_BY_HEADS, Graph, Node
from .places import Component, Sized
from .prompts import Asked, Metric, Prompt, content_of, first_difference

# Component, layer and head of both ends of an edge, how much the loss grew, and whether the edge was kept.
NUMBERS = 8


@dataclass(frozen=True, slots=True, eq=False)
class CircuitDiscovery:
    """Remove edges, along which receivers then read the values of `source`, as long as the loss grows little.

    metric: of the first target, whose fall is the loss; None: the divergence from the unchanged run. edges: those to
    begin with; None: all.
    """

    source: Prompt
    threshold: float
    metric: Metric | None = None
    edges: Edges | None = None

    @property
    def pairs(self) -> bool:
        """Neither scores nor patterns are read or changed."""
        return False

    def candidates(self, model: Sized) -> Edges:
        """The edges that it begins with."""
        return Graph(model).edges() if self.edges is None else self.edges

    def runs(self, _asked: Asked, model: Sized) -> int:
        """One for each edge, at most."""
        return model.edges() if self.edges is None else int(self.edges.sum())

    def answer_bytes(self, asked: Asked, model: Sized) -> int:
        """The ends of every edge, its growth, and whether it was kept."""
        return FLOAT * NUMBERS * self.runs(asked, model)

    def restarts(self, asked: Asked, model: Sized) -> Restarts:
        """A run for each edge, which restarts at its receiver; with a list of edges, where the first is missing."""
        found: dict[Extent, int] = {}
        edges, graph = self.candidates(model), Graph(model)
        missing = graph.edges() & ~edges
        positions = self.differing(asked)
        for number, tried in enumerate(edges.sum(axis=1)):
            if tried:
                one = missing.copy()
                one[number] = graph.edges()[number]
                there = detoured(one, model, positions, (asked.position,))
                extent = extent_of(
                    (), (), asked.position, asked.tokens, model.layers, detoured=there, sight=asked.sight
                )
                found[extent] = found.get(extent, 0) + int(tried)
        return found

    def differing(self, asked: Asked) -> tuple[int, ...]:
        """The positions where the prompts may differ, up to the one that is read."""
        return tuple(range(first_difference(asked.prompt, self.source), asked.sight.horizon(asked.position) + 1))

    def cost(self, asked: Asked, model: Sized, restarts: Restarts) -> Cost:
        """The cost before anything runs, at most, but for trials that are made too early."""
        full, runs = asked.tokens * model.layers, self.runs(asked, model)
        both = 1 if content_of(self.source) == content_of(asked.prompt) else 2
        again = rereading(writers(model, self.differing(asked)), asked.tokens, model.layers, asked.sight)
        work = both * full + 2 * again.token_layers + token_layers(restarts)
        return Cost(runs, work, (2 * both + runs) * full, self.answer_bytes(asked, model))

    def held_bytes(self, asked: Asked, model: Sized) -> int:
        """Both runs, what all senders write in them, and the difference that each makes to the stream."""
        width = 2 * model.hidden_size + model.heads * model.head_size
        values = FLOAT * asked.tokens * model.layers * width
        columns = detour_bytes(Graph(model).senders, asked.tokens, model, FLOAT)
        return 2 * state_bytes(asked.tokens, model) + 3 * values + columns + self.answer_bytes(asked, model)


@dataclass(frozen=True, slots=True, eq=False)
class DiscoveredEdges(Answer):
    """Edges from `offset` on, in the order of their trials: both ends [n, 3], growths of the loss [n], kept [n].

    loss: that of the circuit after the last of them.
    """

    offset: int
    senders: Integers
    receivers: Integers
    growths: Floats
    kept: Integers
    loss: float


class Pruning:
    """The state of a discovery: which edges are kept, and which are tried next. Knows nothing of runs."""

    def __init__(self, edges: Edges, model: Sized) -> None:
        self.kept = edges.copy()
        self.decided = 0
        self._graph = graph = Graph(model)
        self._every = graph.edges()
        self._nodes = list(graph.receivers())
        # By receiver: the senders whose values depend on it directly. What depends on the logits is all that matters.
        self._writers = np.zeros_like(self._every)
        for number, node in enumerate(self._nodes):
            self._writers[number, self._of(node)] = True
        self._receiver = len(self._nodes)
        self._waiting: list[int] = []

    def next(self, most: int) -> tuple[int, Sequence[int]] | None:
        """The receiver whose edges are tried now, and the next senders, at most so many. None: all are decided."""
        while not self._waiting:
            if not self._receiver:
                return None
            self._receiver -= 1
            own = np.nonzero(self.kept[self._receiver])[0][::-1]
            if self._alive()[self._receiver]:
                self._waiting = own.tolist()
            else:
                # What it reads makes no difference.
                self.kept[self._receiver] = False
                self.decided += len(own)
        return self._receiver, self._waiting[:most]

    def decide(self, sender: int, *, kept: bool) -> None:
        """Keeps or removes the edge from the next sender, which was tried."""
        self._waiting.remove(sender)
        self.kept[self._receiver, sender] = kept
        self.decided += 1

    def missing(self) -> Edges:
        """The edges that are removed. Of nodes that nothing reads none is, because it is the same."""
        return self._every & ~self.kept & self._alive()[:, None]

    def trials(self, receiver: int, senders: Sequence[int]) -> list[Edges]:
        """The edges that are missing when those from the first sender are removed, from the first two, and so on."""
        found, missing = [], self.missing()
        for sender in senders:
            missing = missing.copy()
            missing[receiver, sender] = True
            found.append(missing)
        return found

    def ends(self, receiver: int, sender: int) -> tuple[Node, Node]:
        """The sender and the receiver of an edge."""
        return self._graph.sender(sender), self._nodes[receiver]

    def _alive(self) -> NDArray[np.bool_]:
        """Of each receiver, whether anything reads what depends on it."""
        written = np.any(self.kept, axis=0)
        alive: NDArray[np.bool_] = np.any(self._writers & written, axis=1, keepdims=True)[:, 0]
        alive[-1] = True
        return alive

    def _of(self, receiver: Node) -> list[int]:
        model = self._graph.model
        if receiver.component is Component.LOGITS:
            return []
        if receiver.component not in READ_BY_HEADS:
            return [self._graph.sender_number(receiver)]
        group = 1 if receiver.component is Component.QUERY else model.heads // model.key_value_heads
        heads = range(receiver.head * group, (receiver.head + 1) * group)
        return [self._graph.sender_number(Node(Component.HEAD_OUT, receiver.layer, head)) for head in heads]
