"""The graph that circuits are made of: what writes to the residual stream, what reads it, and what comes after what.

Nodes and edges are numbered as EdgeAttributions numbers them. Senders are what enters block 0, each head, and each MLP;
receivers are each head's queries, keys and values, each MLP's input, and the logits. A receiver sees the senders that
come before it: those of lower blocks, and where an MLP reads what attention wrote, the heads of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .places import Component, Sized


class Node(NamedTuple):
    """One end of an edge; layer and head are 0 where it has none."""

    component: Component
    layer: int
    head: int


# What an edit with a path can change: all that writes to the stream, and the stream itself.
WRITERS = frozenset(
    {
        Component.TOKEN_EMBEDDING,
        Component.RESIDUAL_PRE,
        Component.HEAD_OUT,
        Component.ATTENTION_OUT,
        Component.RESIDUAL_MID,
        Component.NEURON,
        Component.MLP_OUT,
        Component.RESIDUAL_POST,
    }
)
READ_BY_HEADS = (Component.QUERY, Component.KEY, Component.VALUE)
READERS = frozenset({*READ_BY_HEADS, Component.MLP_OUT, Component.LOGITS})


def written(component: Component, layer: int) -> int:
    """When in a pass a component of a layer is there; `read` tells when the stream is read."""
    match component:
        case Component.TOKEN_EMBEDDING:
            return 0
        case Component.RESIDUAL_PRE:
            return 4 * layer
        case Component.QUERY | Component.KEY | Component.VALUE:
            return 4 * layer + 1
        case Component.HEAD_OUT | Component.ATTENTION_OUT | Component.RESIDUAL_MID:
            return 4 * layer + 2
        case _:
            return 4 * layer + 4


def read(component: Component, layer: int, model: Sized) -> int:
    """When in a pass a receiver reads the stream: it sees what is written at that time or before."""
    if component is Component.LOGITS:
        return 4 * model.layers
    if component is Component.MLP_OUT and not model.parallel:
        return 4 * layer + 3
    return 4 * layer + 1


def precedes(sender: tuple[Component, int], receiver: tuple[Component, int], model: Sized) -> bool:
    """Whether a receiver reads the stream after a sender, each a component and a layer, has written to it."""
    return written(*sender) <= read(*receiver, model)


@dataclass(frozen=True, slots=True)
class Graph:
    """All senders and receivers of a model, by number."""

    model: Sized

    @property
    def senders(self) -> int:
        """How many senders there are."""
        return 1 + self.model.layers * (self.model.heads + 1)

    @property
    def readers_per_block(self) -> int:
        """How many receivers a block has: its heads' queries, then keys, then values, and its MLP."""
        return self.model.heads + 2 * self.model.key_value_heads + 1

    def sender(self, number: int) -> Node:
        """The sender of this number."""
        if not number:
            return Node(Component.TOKEN_EMBEDDING, 0, 0)
        layer, unit = divmod(number - 1, self.model.heads + 1)
        if unit == self.model.heads:
            return Node(Component.MLP_OUT, layer, 0)
        return Node(Component.HEAD_OUT, layer, unit)

    def sender_number(self, node: Node) -> int:
        """The number of a sender."""
        if node.component is Component.TOKEN_EMBEDDING:
            return 0
        unit = node.head if node.component is Component.HEAD_OUT else self.model.heads
        return 1 + node.layer * (self.model.heads + 1) + unit

    def receiver_number(self, node: Node) -> int:
        """The number of a receiver, in the order of `receivers`."""
        model = self.model
        if node.component is Component.LOGITS:
            return model.layers * self.readers_per_block
        first = {
            Component.QUERY: 0,
            Component.KEY: model.heads,
            Component.VALUE: model.heads + model.key_value_heads,
            Component.MLP_OUT: model.heads + 2 * model.key_value_heads,
        }[node.component]
        return node.layer * self.readers_per_block + first + node.head

    def edges(self) -> NDArray[np.bool_]:
        """Which edges there are: [receivers, senders]."""
        before = np.array([self.before(receiver) for receiver in self.receivers()])
        return np.arange(self.senders)[None, :] < before[:, None]

    def receivers(self) -> Iterator[Node]:
        """Every receiver, from block 0 up."""
        for layer in range(self.model.layers):
            for component in READ_BY_HEADS:
                yield from (Node(component, layer, head) for head in range(self.model.units(component)))
            yield Node(Component.MLP_OUT, layer, 0)
        yield Node(Component.LOGITS, 0, 0)

    def before(self, receiver: Node) -> int:
        """How many senders come before a receiver: they are those of the first numbers."""
        model = self.model
        if receiver.component is Component.LOGITS:
            return self.senders
        within = model.heads if receiver.component is Component.MLP_OUT and not model.parallel else 0
        return 1 + receiver.layer * (model.heads + 1) + within
