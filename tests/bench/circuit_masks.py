"""auto-circuit's way to run a circuit (github.com/UFO-101/auto-circuit), by plain hooks.

Every read of a pass is corrected by one masked product over what all senders wrote: the other prompt's values less
those of this pass, for the edges that are not kept.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from sonde.v1 import inspection_pb2 as pb
from torch import Tensor

from tests.bench.circuit_hooked import Hooked
from tests.bench.circuit_workloads import Edges
from tests.bench.plain import entered, hooked


def masks_of(on: Hooked, edges: Edges, size: int) -> dict[tuple[int, int], Tensor]:
    """By component and layer of receivers, [receivers, senders below]: 1 where an edge is patched."""
    masks = {}
    places = {pb.COMPONENT_QUERY: on.heads, pb.COMPONENT_KEY: on.key_value_heads}
    places[pb.COMPONENT_VALUE] = on.key_value_heads
    below = 1
    for layer in range(len(on.modules.blocks)):
        for component, units in places.items():
            masks[int(component), layer] = torch.ones(units, below)
        masks[int(pb.COMPONENT_MLP_OUT), layer] = torch.ones(1, below + on.heads)
        below += on.heads + 1
    masks[int(pb.COMPONENT_LOGITS), 0] = torch.ones(1, below)
    for (kind, layer, head), (component, at, unit) in zip(
        edges.senders[:size].tolist(), edges.receivers[:size].tolist(), strict=True
    ):
        sender = 1 + layer * (on.heads + 1) + (head if kind == pb.COMPONENT_HEAD_OUT else on.heads)
        masks[component, at][unit, 0 if kind == pb.COMPONENT_TOKEN_EMBEDDING else sender] = 0.0
    return masks


class Written:
    """A pass that keeps what every sender writes, [senders, rows, T, D], from the embedding up."""

    def __init__(self, on: Hooked) -> None:
        self.on = on
        self.written: Tensor | None = None
        self._count = 0

    def of(self, cases: Sequence[Sequence[int]]) -> Tensor:
        """Of the unchanged runs of these prompts."""
        self.pass_of(cases)
        assert self.written is not None
        return self.written

    def pass_of(self, cases: Sequence[Sequence[int]]) -> Tensor:
        """The final norm at the last position."""
        modules = self.on.modules
        with (
            hooked([modules.embedding], lambda _, value: self._embedded(value)),
            entered(modules.attention_projection, self._attended),
            hooked(modules.mlp_out, lambda _, value: self._keep(value[None])),
        ):
            return self.on.final(input_ids=torch.tensor(cases), use_cache=False)

    def _embedded(self, value: Tensor) -> Tensor:
        senders = 1 + len(self.on.modules.blocks) * (self.on.heads + 1)
        self.written = value.new_empty(senders, *value.shape)
        self._count = 0
        self._keep(value[None])
        return value

    def _attended(self, layer: int, mixed: Tensor) -> Tensor:
        weight = self.on.modules.attention_projection[layer].weight.unflatten(1, (self.on.heads, -1))
        by_head = mixed.unflatten(-1, (self.on.heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        self._keep(torch.bmm(by_head, weight.permute(1, 2, 0)).unflatten(1, mixed.shape[:2]))
        return mixed

    def _keep(self, values: Tensor) -> Tensor:
        assert self.written is not None
        self.written[self._count : self._count + len(values)] = values
        self._count += len(values)
        return values[0]


class Circuit(Written):
    """A pass in which each read is corrected by what its patched edges carry instead."""

    def __init__(self, on: Hooked, other: Tensor, masks: Mapping[tuple[int, int], Tensor]) -> None:
        super().__init__(on)
        self.other, self.masks = other, masks

    def final(self, cases: Sequence[Sequence[int]]) -> Tensor:
        """The final norm at the last position."""
        with ExitStack() as stack:
            for layer, block in enumerate(self.on.modules.blocks):
                stack.callback(block.register_forward_pre_hook(self._reading(layer)).remove)
            stack.enter_context(entered(self.on.modules.mlp_norm, self._mlp_reads))
            stack.enter_context(entered([self.on.modules.final_norm], self._logits_read))
            return self.pass_of(cases)

    def _corrected(self, stream: Tensor, mask: Tensor) -> Tensor:
        """What receivers read: [receivers, rows, T, D]."""
        assert self.written is not None
        below = mask.shape[1]
        difference = self.other[:below] - self.written[:below]
        return stream + (mask @ difference.flatten(1)).unflatten(1, stream.shape)

    def _reading(self, layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        """Before a block: has each query, key and value projected from its own read."""

        def before(_: Any, inputs: tuple[Tensor, ...]) -> None:
            kinds = (pb.COMPONENT_QUERY, pb.COMPONENT_KEY, pb.COMPONENT_VALUE)
            masks = [self.masks[int(kind), layer] for kind in kinds]
            reads = self.on.norms[layer](self._corrected(inputs[0], torch.cat(masks)))
            for module, some in zip(
                self.on.projections[layer], reads.split([len(mask) for mask in masks]), strict=True
            ):
                weight = module.weight.unflatten(0, (len(some), -1))
                made = torch.bmm(some.flatten(1, 2), weight.transpose(1, 2)).unflatten(1, some.shape[1:3])
                # Once: the module's own product is put aside until then.
                module.forward = _instead(module, made.permute(1, 2, 0, 3).flatten(2))

        return before

    def _mlp_reads(self, layer: int, stream: Tensor) -> Tensor:
        return self._corrected(stream, self.masks[int(pb.COMPONENT_MLP_OUT), layer])[0]

    def _logits_read(self, _: int, stream: Tensor) -> Tensor:
        assert self.written is not None
        last = (self.other[:, :, -1] - self.written[:, :, -1]).flatten(1)
        added = (self.masks[int(pb.COMPONENT_LOGITS), 0] @ last).view(stream.shape[0], -1)
        return torch.cat([stream[:, :-1], (stream[:, -1] + added)[:, None]], 1)


def _instead(module: Any, value: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(_: Tensor) -> Tensor:
        del module.forward
        return value

    return forward
