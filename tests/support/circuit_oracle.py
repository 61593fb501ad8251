"""Paths and circuits, slowly: full runs of plain transformers with hooks (oracle.py), one for every read.

Path patching is done as Wang et al. do it (2022, arXiv 2211.00593): with everything frozen that is not on the path.
A circuit is done by writing out what each receiver reads, as a sum over its edges (Conmy et al. 2023, arXiv
2304.14997).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tests.support.oracle import Edit, Oracle, Set, Site

Values = Mapping[tuple[str, int], Tensor]


class Node(NamedTuple):
    """A sender, a receiver or what lies between; `head` is 0 where it has none."""

    component: str
    layer: int
    head: int


Edge = tuple[Node, Node]
"""A sender and a receiver."""


class CircuitOracle:
    """What circuits of a model do, by an oracle of the model."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.parallel = "RESIDUAL_MID" not in oracle.components

    # ------------------------------------------------------------ the graph

    def senders(self) -> list[Node]:
        """Every sender, from the embedding up."""
        found = [Node("TOKEN_EMBEDDING", 0, 0)]
        for layer in range(self.oracle.layers):
            found += [Node("HEAD_OUT", layer, head) for head in range(self.oracle.heads)]
            found.append(Node("MLP_OUT", layer, 0))
        return found

    def receivers(self) -> list[Node]:
        """Every receiver, from block 0 up."""
        found = []
        for layer in range(self.oracle.layers):
            for name in ("QUERY", "KEY", "VALUE"):
                found += [Node(name, layer, head) for head in range(self.oracle.units(name))]
            found.append(Node("MLP_OUT", layer, 0))
        return [*found, Node("LOGITS", 0, 0)]

    def precedes(self, sender: Node, receiver: Node) -> bool:
        """Whether a receiver reads what a sender writes."""
        if sender.component == "TOKEN_EMBEDDING" or receiver.component == "LOGITS":
            return True
        within = sender.component == "HEAD_OUT" and receiver.component == "MLP_OUT" and not self.parallel
        return sender.layer < receiver.layer or (within and sender.layer == receiver.layer)

    def edges(self) -> list[Edge]:
        """Every edge."""
        return [(s, r) for r in self.receivers() for s in self.senders() if self.precedes(s, r)]

    # ------------------------------------------------------------ path patching

    def path_patch(
        self, ids: Sequence[int], senders: Sequence[Edit], receivers: Iterable[Site], through: Iterable[Node]
    ) -> Tensor:
        """Logits [T, V] when the edits of `senders` reach receivers, which do not feed each other, on paths alone.

        The senders' edits set values. Nodes of `through` are recomputed on the way, all others are frozen.
        """
        clean = self.oracle.run(ids).values
        moving = set(through)
        frozen = list(senders)
        for layer in range(self.oracle.layers):
            heads = [head for head in range(self.oracle.heads) if Node("HEAD_OUT", layer, head) not in moving]
            frozen = [*self._frozen("HEAD_OUT", layer, tuple(heads), clean), *frozen]
            if Node("MLP_OUT", layer, 0) not in moving:
                frozen = [*self._frozen("MLP_OUT", layer, (), clean), *frozen]
        reached = self.oracle.run(ids, frozen).values
        given = []
        for site in receivers:
            if site.component == "LOGITS":
                logits = reached["RESIDUAL_POST", self.oracle.layers - 1]
                given.append(set_to(Site("RESIDUAL_POST", (self.oracle.layers - 1,), (), site.positions), logits))
            elif site.component == "MLP_OUT":
                given += [
                    set_to(Site("MLP_OUT", (layer,), (), site.positions), self._mlp(ids, reached, layer))
                    for layer in site.layers
                ]
            else:
                given += [
                    set_to(Site(site.component, (layer,), site.units, site.positions), reached[site.component, layer])
                    for layer in site.layers
                ]
        return self.oracle.run(ids, given).logits

    def _frozen(self, component: str, layer: int, units: tuple[int, ...], clean: Values) -> list[Edit]:
        if component == "HEAD_OUT" and not units:
            return []
        return [set_to(Site(component, (layer,), units), clean[component, layer])]

    def _mlp(self, ids: Sequence[int], reached: Values, layer: int) -> Tensor:
        """What the MLP makes of the stream in a frozen run, in which its own output is frozen."""
        return self._mlp_of(ids, layer, reached["RESIDUAL_PRE" if self.parallel else "RESIDUAL_MID", layer])

    # ------------------------------------------------------------ circuits

    def circuit(self, ids: Sequence[int], other: Values, missing: Iterable[Edge]) -> Tensor:
        """Logits [T, V] when each receiver reads `other`'s values along its missing edges, and the run's own otherwise.

        `other` has RESIDUAL_PRE of block 0, for what enters, HEAD_OUT and MLP_OUT.
        """
        cut: dict[Node, set[Node]] = {}
        for sender, receiver in missing:
            cut.setdefault(receiver, set()).add(sender)
        entering = self.oracle.run(ids).values["RESIDUAL_PRE", 0]
        mixes: list[Tensor] = []
        mlps: list[Tensor] = []
        # What several receivers read in common is computed once.
        attended: dict[tuple[int, tuple[int, ...]], Tensor] = {}

        def attention(layer: int, gone: set[Node]) -> Tensor:
            heads = tuple(head for head in range(self.oracle.heads) if Node("HEAD_OUT", layer, head) in gone)
            if (layer, heads) not in attended:
                mixed = mixes[layer].clone()
                mixed[:, heads] = other["HEAD_OUT", layer][:, heads]
                attended[layer, heads] = self._attention_of(ids, layer, mixed)
            return attended[layer, heads]

        def read(receiver: Node) -> Tensor:
            gone = cut.get(receiver, set())
            stream = (other["RESIDUAL_PRE", 0] if Node("TOKEN_EMBEDDING", 0, 0) in gone else entering).clone()
            for layer in range(self.oracle.layers):
                if not self.precedes(Node("HEAD_OUT", layer, 0), receiver):
                    break
                stream += attention(layer, gone)
                if self.precedes(sender := Node("MLP_OUT", layer, 0), receiver):
                    stream += other["MLP_OUT", layer] if sender in gone else mlps[layer]
            return stream

        for layer in range(self.oracle.layers):
            given = []
            seen: dict[frozenset[Node], Values] = {}
            for name in ("QUERY", "KEY", "VALUE"):
                for head in range(self.oracle.units(name)):
                    gone = frozenset(cut.get(receiver := Node(name, layer, head), ()))
                    if gone not in seen:
                        seen[gone] = self._at(ids, set_to(Site("RESIDUAL_PRE", (layer,)), read(receiver)))
                    given.append(set_to(Site(name, (layer,), (head,)), seen[gone][name, layer]))
            mixes.append(self.oracle.run(ids, given).values["HEAD_OUT", layer])
            mlps.append(self._mlp_of(ids, layer, read(Node("MLP_OUT", layer, 0))))
        last = set_to(Site("RESIDUAL_POST", (self.oracle.layers - 1,)), read(Node("LOGITS", 0, 0)))
        return self.oracle.run(ids, [last]).logits

    def _at(self, ids: Sequence[int], *edits: Edit) -> Values:
        return self.oracle.run(ids, edits).values

    def _attention_of(self, ids: Sequence[int], layer: int, mixed: Tensor) -> Tensor:
        return self._at(ids, set_to(Site("HEAD_OUT", (layer,)), mixed))["ATTENTION_OUT", layer]

    def _mlp_of(self, ids: Sequence[int], layer: int, stream: Tensor) -> Tensor:
        read = "RESIDUAL_PRE" if self.parallel else "RESIDUAL_MID"
        return self._at(ids, set_to(Site(read, (layer,)), stream))["MLP_OUT", layer]


def set_to(site: Site, values: Tensor) -> Edit:
    """An edit that gives a site the values that it has in `values` [T, ...], which are of all positions and units."""
    chosen: Any = values
    if site.positions:
        chosen = chosen[[position % len(values) for position in site.positions]]
    if site.units:
        chosen = chosen[:, list(site.units)]
    return Edit(site, Set(np.ascontiguousarray(chosen.detach().numpy())))
