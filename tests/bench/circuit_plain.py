"""Circuits by plain transformers with hooks, as published, in batches; for models built like Llama.

W10  path patching (Wang et al. 2022): a pass for each head, in which all other heads and all MLPs are frozen, batched
     over heads. Their next pass, in which receivers are set, would only set what the logits read.
W11  auto-circuit's patches of edges: a pass for each size, batched over the pairs (circuit_masks.py).
W12  causal scrubbing (Chan et al. 2022): a pass for each node of each draw, batched over draws (circuit_scrubbing.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.bench.batches import chunks
from tests.bench.case_plain import by_length, differences
from tests.bench.case_workloads import Pair
from tests.bench.circuit_hooked import Hooked
from tests.bench.circuit_masks import Circuit, Written, masks_of
from tests.bench.circuit_scrubbing import Scrub
from tests.bench.circuit_workloads import Curve, Paths, Scrubbing
from tests.bench.plain import entered, hooked, prefix_of
from tests.bench.workloads import Answer


class Published(Hooked):
    """The published algorithms, batched."""

    name = "plain hooks, the published passes, batched"
    omitted: Mapping[str, str] = {}

    @torch.no_grad()
    def paths(self, workload: Paths) -> Answer:
        return _mean_by_head(workload, self._frozen)

    def _frozen(self, cases: Sequence[Pair], cells: Sequence[tuple[int, int]]) -> Tensor:
        """Logit differences [pairs, cells]."""
        sources, _ = self.mixes([case.source for case in cases])
        mixes, mlps = self.mixes([case.tokens for case in cases])
        ids = torch.tensor([case.tokens for case in cases])
        runs = [(pair, layer, head) for pair in range(len(cases)) for layer, head in cells]
        read = []
        for some in chunks(range(len(runs)), ids.shape[1]):
            rows = [runs[number] for number in some]
            of = [pair for pair, _, _ in rows]

            def attended(layer: int, _: Tensor, rows: list[Any] = rows, of: list[int] = of) -> Tensor:
                value = mixes[layer][of]
                for row, (pair, at, head) in enumerate(rows):
                    if at == layer:
                        value[row, :, self.head(head)] = sources[layer][pair, :, self.head(head)]
                return value

            def written(layer: int, _: Tensor, of: list[int] = of) -> Tensor:
                return mlps[layer][of]

            with entered(self.modules.attention_projection, attended), hooked(self.modules.mlp_out, written):
                final = self.final(input_ids=ids[of], use_cache=False)
            read.append(differences(self.modules.unembedding.weight, final, [cases[pair] for pair in of]))
        return torch.cat(read).view(len(cases), len(cells))

    @torch.no_grad()
    def curve(self, workload: Curve) -> Answer:
        total = torch.zeros(len(workload.sizes), dtype=torch.float64)
        masks = [masks_of(self, workload.edges, size) for size in workload.sizes]
        for alike in by_length(workload.cases):
            other = Written(self).of([case.source for case in alike])
            for number, kept in enumerate(masks):
                final = Circuit(self, other, kept).final([case.tokens for case in alike])
                total[number] += differences(self.modules.unembedding.weight, final, alike).double().sum()
        return (total / len(workload.cases)).numpy()

    @torch.no_grad()
    def scrubbing(self, workload: Scrubbing) -> Answer:
        draws = torch.from_numpy(workload.draws).flatten(0, 1)
        final = Scrub(self, workload, draws).final()
        samples = workload.draws.shape[1]
        pairs = [workload.cases[one] for one in workload.references for _ in range(samples)]
        read = differences(self.modules.unembedding.weight, final, pairs)
        return read.view(len(workload.references), samples).double().numpy()


class PrefixCache(Hooked):
    """The same passes of W10, of which a prefix cache leaves the position that is read."""

    name = "plain hooks, prefix cache"
    omitted: Mapping[str, str] = dict.fromkeys(("W11", "W12"), "there every position changes")

    @torch.no_grad()
    def paths(self, workload: Paths) -> Answer:
        return _mean_by_head(workload, self._frozen)

    def _frozen(self, cases: Sequence[Pair], cells: Sequence[tuple[int, int]]) -> Tensor:
        sources, _ = self.mixes([case.source for case in cases])
        mixes, mlps = self.mixes([case.tokens for case in cases])
        ids, cache = torch.tensor([case.tokens for case in cases]), DynamicCache(config=self.model.config)
        self.final(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        length = ids.shape[1]
        runs = [(pair, layer, head) for pair in range(len(cases)) for layer, head in cells]
        read = []
        for some in chunks(range(len(runs)), max(8, length // 4)):
            rows = [runs[number] for number in some]
            of = [pair for pair, _, _ in rows]

            def attended(layer: int, _: Tensor, rows: list[Any] = rows, of: list[int] = of) -> Tensor:
                value = mixes[layer][of, -1:]
                for row, (pair, at, head) in enumerate(rows):
                    if at == layer:
                        value[row, 0, self.head(head)] = sources[layer][pair, -1, self.head(head)]
                return value

            def written(layer: int, _: Tensor, of: list[int] = of) -> Tensor:
                return mlps[layer][of, -1:]

            past = prefix_of(self.model, cache, length - 1, of)
            with entered(self.modules.attention_projection, attended), hooked(self.modules.mlp_out, written):
                final = self.final(input_ids=ids[of, -1:], past_key_values=past, use_cache=True)
            read.append(differences(self.modules.unembedding.weight, final, [cases[pair] for pair in of]))
        return torch.cat(read).view(len(cases), len(cells))

    def curve(self, workload: Curve) -> Answer:
        raise NotImplementedError(self.omitted["W11"])

    def scrubbing(self, workload: Scrubbing) -> Answer:
        raise NotImplementedError(self.omitted["W12"])


def _mean_by_head(workload: Paths, measure: Callable[[Sequence[Pair], Sequence[tuple[int, int]]], Tensor]) -> Answer:
    cells = [(layer, head) for layer in workload.layers for head in range(workload.heads)]
    total = torch.zeros(len(cells), dtype=torch.float64)
    for alike in by_length(workload.cases):
        total += measure(alike, cells).double().sum(0)
    return (total / len(workload.cases)).view(len(workload.layers), workload.heads).numpy()
