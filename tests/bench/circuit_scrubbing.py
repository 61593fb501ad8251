"""Causal scrubbing by plain hooks: a pass for each node of each draw, batched over the draws.

It knows what the benchmark's hypothesis has: heads, MLPs and queries; direct children of queries and of the prediction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.bench.batches import chunks
from tests.bench.circuit_hooked import Hooked, keep
from tests.bench.circuit_workloads import Scrubbing
from tests.bench.plain import entered, hooked
from tests.support.scrubbing_oracle import Node

Values = dict[str, list[Tensor]]
"""By component, a tensor of all rows for each block."""


class Scrub:
    """A pass for each node of each draw."""

    def __init__(self, on: Hooked, workload: Scrubbing, draws: Tensor) -> None:
        self.on, self.nodes, self.draws = on, workload.nodes, draws
        self.ids = torch.tensor([case.tokens for case in workload.cases])

    def final(self) -> Tensor:
        """The final norm at the last position, for every draw [draws, D]."""
        parts = []
        for some in chunks(range(len(self.draws)), self.ids.shape[1]):
            rows = self.draws[some]
            values = self._pass(0, rows)
            states = values["final"][0] + self._direct(0, rows, values)
            parts.append(self.on.modules.final_norm(states[:, -1]))
        return torch.cat(parts)

    def _children(self, number: int, *, direct: bool) -> list[int]:
        return [child for child, one in enumerate(self.nodes) if one.parent == number and one.direct == direct]

    def _pass(self, number: int, rows: Tensor) -> Values:
        """That of a node's other example, with the values of its children that are not direct."""
        changed = [(self.nodes[child], self._value(child, rows)) for child in self._children(number, direct=False)]
        inner = any(one.parent == number for one in self.nodes)
        values: Values = {"QUERY": [], "HEAD_OUT": [], "MLP_OUT": [], "entering": [], "final": []}

        def at(component: str) -> Callable[[int, Tensor], Tensor]:
            def visit(layer: int, value: Tensor) -> Tensor:
                for node, other in changed:
                    assert node.site is not None
                    if (node.site.component, node.site.layers) == (component, (layer,)):
                        value = self._put(node, value, other)
                values[component].append(value)
                return value

            return visit

        modules = self.on.modules
        with (
            entered(modules.blocks, keep(values["entering"])),
            entered([modules.final_norm], keep(values["final"])),
            hooked([one[0] for one in self.on.projections], at("QUERY")),
            entered(modules.attention_projection, at("HEAD_OUT")),
            hooked(modules.mlp_out, at("MLP_OUT")),
        ):
            self.on.final(input_ids=self.ids[rows[:, number, 1 if inner else 0]], use_cache=False)
        return values

    def _value(self, number: int, rows: Tensor) -> Tensor:
        """A node's value in every draw, of all units and positions."""
        node, values = self.nodes[number], self._pass(number, rows)
        assert node.site is not None
        (layer,) = node.site.layers
        if not self._children(number, direct=True):
            return values[node.site.component][layer]
        assert node.site.component == "QUERY"
        stream = values["entering"][layer] + self._direct(number, rows, values)
        made: Tensor = self.on.projections[layer][0](self.on.norms[layer](stream))
        return made

    def _direct(self, number: int, rows: Tensor, values: Values) -> Tensor:
        """What the direct children change in the stream that a node reads, from the values of its pass."""
        total = torch.zeros_like(values["final"][0])
        for child in self._children(number, direct=True):
            node, other = self.nodes[child], self._value(child, rows)
            assert node.site is not None
            (layer,) = node.site.layers
            own = values[node.site.component][layer]
            moved = self._put(node, own, other) - own
            total += moved if node.site.component == "MLP_OUT" else self.on.modules.attention_projection[layer](moved)
        return total

    def _put(self, node: Node, value: Tensor, other: Tensor) -> Tensor:
        """A value with a node's units and positions of another."""
        assert node.site is not None
        value = value.clone()
        positions = list(node.site.positions) or slice(None)
        for unit in [self.on.head(unit) for unit in node.site.units] or [slice(None)]:
            value[:, positions, unit] = other[:, positions, unit]
        return value
