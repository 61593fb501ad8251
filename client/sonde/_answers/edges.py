"""Edges of attribution patching: from a component that writes to one that reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from sonde._arrays import Floats, Integers, data_frame
from sonde._ask.names import COMPONENT_AXES, WITHOUT_LAYER, ComponentName, check_name, component_name

if TYPE_CHECKING:
    import pandas as pd

_HEADED = frozenset(name for name, axes in COMPONENT_AXES.items() if axes[1:2] == ("head",))


@dataclass(frozen=True, slots=True)
class Node:
    """One end of an edge."""

    component: ComponentName | str
    layer: int | None
    """None if the component has no layers."""
    head: int | None
    """None if the component has no heads."""

    def __str__(self) -> str:
        parts = [str(self.component).replace("_", " ")]
        if self.layer is not None:
            parts.append(str(self.layer) if self.head is None else f"{self.layer}.{self.head}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """The path from what `sender` writes to what `receiver` reads."""

    sender: Node
    """`token_embedding` (everything that enters the first block), a head of `head_out`, or an `mlp_out`."""
    receiver: Node
    """A head of `query`, `key` or `value`, an MLP's input (`mlp_out`), or `logits`."""
    estimates: Floats
    """[target]: the estimated change in the metric, in its units."""

    def __str__(self) -> str:
        return f"{self.sender} → {self.receiver}"


@dataclass(frozen=True, eq=False)
class Edges(Sequence[Edge]):
    """The edges of the answer, sorted by the size of their estimate for the first target, the largest first."""

    senders: Integers
    """[edge, 3]: component (the contract's number), layer and head."""
    receivers: Integers
    """[edge, 3]: component, layer and head."""
    estimates: Floats
    """[edge, target]"""

    def __len__(self) -> int:
        return len(self.estimates)

    @overload
    def __getitem__(self, index: int) -> Edge: ...
    @overload
    def __getitem__(self, index: slice) -> "Edges": ...
    def __getitem__(self, index: int | slice) -> "Edge | Edges":
        if isinstance(index, slice):
            return Edges(self.senders[index], self.receivers[index], self.estimates[index])
        return Edge(_node(self.senders[index]), _node(self.receivers[index]), self.estimates[index])

    def __iter__(self) -> Iterator[Edge]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Edges({len(self):,}{f', {self[0]} first' if len(self) else ''})"

    def ordered(self, *, by: Literal["absolute", "signed"] = "absolute", target: int = 0) -> "Edges":
        """The same edges, the most important ones first.

        Args:
            by: "absolute" puts first those that make the largest difference, "signed" those that raise the metric the
                most when they are patched. Published circuits differ in this, and with it their faithfulness.
            target: the target's index.
        """
        check_name(by, ("absolute", "signed"), "by")
        values = self.estimates[:, target]
        order = np.argsort(-np.abs(values) if by == "absolute" else -values, kind="stable")
        return Edges(self.senders[order], self.receivers[order], self.estimates[order])

    def columns(self, target: int = 0) -> Mapping[str, Sequence[object]]:
        """Senders, receivers and the estimates of one target, as columns."""
        table: dict[str, list[object]] = {}
        for end, nodes in (("sender", map(_node, self.senders)), ("receiver", map(_node, self.receivers))):
            rows = [(node.component, node.layer, node.head) for node in nodes]
            for number, name in enumerate((end, f"{end}_layer", f"{end}_head")):
                table[name] = [row[number] for row in rows]
        table["estimate"] = self.estimates[:, target].tolist()
        return table

    def to_dataframe(self, target: int = 0) -> "pd.DataFrame":
        """One row per edge, for one target (needs pandas)."""
        return data_frame(self.columns(target))


@dataclass(frozen=True, eq=False)
class Nodes(Sequence[Node]):
    """Nodes by the size of their estimate for one target, the largest first."""

    senders: Integers
    """[node, 3]: component (the contract's number), layer and head."""
    estimates: Floats
    """[node]: the estimated change of the metric when the node is patched at every position."""

    def __len__(self) -> int:
        return len(self.estimates)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> "Nodes": ...
    def __getitem__(self, index: int | slice) -> "Node | Nodes":
        if isinstance(index, slice):
            return Nodes(self.senders[index], self.estimates[index])
        return _node(self.senders[index])

    def __iter__(self) -> Iterator[Node]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Nodes({len(self):,}{f', {self[0]} first' if len(self) else ''})"


def _node(row: Integers) -> Node:
    number, layer, head = (int(value) for value in row)
    name = component_name(number)
    return Node(name, None if name in WITHOUT_LAYER else layer, head if name in _HEADED else None)


def no_edges(targets: int) -> Edges:
    """Return an empty list of edges, for a request without edges."""
    empty = np.empty((0, 3), np.int64)
    return Edges(empty, empty, np.empty((0, targets), np.float32))
