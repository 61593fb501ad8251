"""nnsight over a dataset: in the loop of its tutorials, and batched with the blocks below the edit skipped."""

from collections.abc import Mapping, Sequence

import nnsight
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.batches import chunks, log_probabilities
from tests.bench.case_plain import by_length, differences, padded, sorted_by_length
from tests.bench.case_workloads import COMPONENTS, Continuations, Fact, Facts, Pair, Pairs, Sentences
from tests.bench.nnsight_contenders import Wrapped
from tests.bench.workloads import Answer

_GENERATES = "it generates with transformers' own generate, which takes part by itself"


class Skipping:
    """Batched by hand; the blocks below the edit are skipped, with the cached residual stream in their place."""

    name = "nnsight, batched + skip"
    omitted: Mapping[str, str] = {"W9": _GENERATES}

    def __init__(self, model: PreTrainedModel) -> None:
        self.on = Wrapped(model)

    @torch.no_grad()
    def pairs(self, workload: Pairs) -> Answer:
        total = torch.zeros(len(workload.layers), workload.heads, dtype=torch.float64)
        for alike in by_length(workload.cases):
            total += self._patched(alike, workload).double().sum(0)
        return (total / len(workload.cases)).numpy()

    def _patched(self, cases: Sequence[Pair], workload: Pairs) -> Tensor:
        """Logit differences [pairs, layers, heads], of pairs of one length."""
        on, size, length = self.on, self.on.head_size, len(cases[0].tokens)
        with on.envoy.trace(input_ids=torch.tensor([case.source for case in cases])):
            sources = nnsight.save([out.input[:, -1] for out in on.out])
        ids = torch.tensor([case.tokens for case in cases])
        with on.envoy.trace(input_ids=ids):
            states = nnsight.save([block.output for block in on.blocks])
        answer = torch.empty(len(cases), len(workload.layers), workload.heads)
        runs = [(pair, head) for pair in range(len(cases)) for head in range(workload.heads)]
        for number, layer in enumerate(workload.layers):
            for some in chunks(range(len(runs)), length):
                pairs, heads = zip(*(runs[run] for run in some), strict=True)
                of = torch.tensor(pairs)
                # The entries of each row's head.
                where = torch.tensor(heads)[:, None] * size + torch.arange(size)
                with on.envoy.trace(input_ids=ids[of]):
                    for below in range(layer):
                        on.blocks[below].skip(states[layer - 1][of])
                    on.out[layer].input[torch.arange(len(some))[:, None], -1, where] = sources[layer][
                        of[:, None], where
                    ]
                    final = on.norm.output[:, -1].save()
                read = differences(on.model.lm_head.weight, final, [cases[pair] for pair in pairs])
                answer[list(pairs), number, list(heads)] = read
        return answer

    @torch.no_grad()
    def sentences(self, workload: Sentences) -> Answer:
        on = self.on
        answer = torch.empty(len(workload), workload.layers, on.model.config.hidden_size, dtype=torch.bfloat16)
        for some in sorted_by_length(workload.cases):
            ids, mask, last = padded([workload.cases[number] for number in some])
            rows = torch.arange(len(some))
            with on.envoy.trace(input_ids=ids, attention_mask=mask):
                kept = nnsight.save([block.output[rows, last].bfloat16() for block in on.blocks])
            answer[some] = torch.stack(list(kept), 1)
        return answer.double().numpy()

    @torch.no_grad()
    def facts(self, workload: Facts) -> Answer:
        return workload.averaged([self._traced(workload, fact) for fact in workload.cases])

    def _traced(self, workload: Facts, fact: Fact) -> Answer:
        """[positions, layers, components]."""
        on, samples, length = self.on, workload.samples, len(fact.tokens)
        noise = torch.from_numpy(workload.noise(fact, on.model.config.hidden_size))
        with on.envoy.trace(input_ids=on.ids(fact.tokens, 1 + samples)):
            on.embedding.output[1:, list(fact.subject)] += noise
            added, kept = [], []
            for block, attention, mlp in zip(on.blocks, on.out, on.mlp, strict=True):
                added.append((attention.output[0], mlp.output[0]))
                kept.append(block.output)
            parts, states = nnsight.save(added), nnsight.save(kept)
        grid = np.empty((length, len(workload.layers), len(COMPONENTS)))
        for number, layer in enumerate(workload.layers):
            for kind, component in enumerate(COMPONENTS):
                layers = workload.restored(component, layer)
                for some in chunks(range(length), length * samples):
                    final = self._restored(fact, component, layers, some, states, parts, noise)
                    read = log_probabilities(on.logits(final), fact.target).exp()
                    grid[some, number, kind] = read.view(len(some), samples).mean(1).numpy()
        return grid

    def _restored(
        self,
        fact: Fact,
        component: str,
        layers: range,
        positions: Sequence[int],
        states: Sequence[Tensor],
        parts: Sequence[tuple[Tensor, Tensor]],
        noise: Tensor,
    ) -> Tensor:
        """The final norm at the last position, [positions x samples, D]."""
        on, samples = self.on, len(noise)
        rows = torch.arange(len(positions) * samples)
        where = torch.tensor(positions).repeat_interleave(samples)
        with on.envoy.trace(input_ids=on.ids(fact.tokens, len(rows))):
            if component == "residual_post":
                entering = states[layers[0]][1:].repeat(len(positions), 1, 1)
                entering[rows, where] = states[layers[0]][0, where]
                for below in range(layers[0] + 1):
                    on.blocks[below].skip(entering)
            else:
                for below in range(layers[0]):
                    on.blocks[below].skip(states[layers[0] - 1][1:].repeat(len(positions), 1, 1))
                if not layers[0]:
                    on.embedding.output[:, list(fact.subject)] += noise.repeat(len(positions), 1, 1)
                for layer in layers:
                    if component == "attention_out":
                        on.out[layer].output[rows, where] = parts[layer][0][where]
                    else:
                        on.mlp[layer].output[rows, where] = parts[layer][1][where]
            final: Tensor = on.norm.output[:, -1].save()
        return final

    def continuations(self, workload: Continuations) -> Answer:
        raise NotImplementedError(_GENERATES)


class Loop:
    """One trace a cell, on the whole model, as the tutorials do."""

    name = "nnsight, loop"
    omitted: Mapping[str, str] = {
        "W7": "its loop over sentences is that of W6's clean runs; the batched form takes part",
        "W9": _GENERATES,
    }

    def __init__(self, model: PreTrainedModel) -> None:
        self.on = Wrapped(model, whole=True)

    @torch.no_grad()
    def pairs(self, workload: Pairs) -> Answer:
        on, size = self.on, self.on.head_size
        total = np.zeros((len(workload.layers), workload.heads))
        for case in workload.cases:
            with on.envoy.trace(input_ids=on.ids(case.source)):
                sources = nnsight.save([out.input[:, -1] for out in on.out])
            for number, layer in enumerate(workload.layers):
                for head in range(workload.heads):
                    where = slice(head * size, (head + 1) * size)
                    with on.envoy.trace(input_ids=on.ids(case.tokens)):
                        on.out[layer].input[:, -1, where] = sources[layer][:, where]
                        logits = on.head.output[0, -1].save()
                    total[number, head] += float(logits[case.target] - logits[case.contrast])
        return total / len(workload.cases)

    @torch.no_grad()
    def facts(self, workload: Facts) -> Answer:
        return workload.averaged([self._traced(workload, fact) for fact in workload.cases])

    def _traced(self, workload: Facts, fact: Fact) -> Answer:
        on, samples = self.on, workload.samples
        noise = torch.from_numpy(workload.noise(fact, on.model.config.hidden_size))
        with on.envoy.trace(input_ids=on.ids(fact.tokens)):
            added = []
            for block, attention, mlp in zip(on.blocks, on.out, on.mlp, strict=True):
                added.append((attention.output[0], mlp.output[0], block.output[0]))
            clean = nnsight.save(added)
        batch = on.ids(fact.tokens, samples)
        grid = np.empty((len(fact.tokens), len(workload.layers), len(COMPONENTS)))
        for position in range(len(fact.tokens)):
            for number, layer in enumerate(workload.layers):
                for kind, component in enumerate(COMPONENTS):
                    with on.envoy.trace(input_ids=batch):
                        on.embedding.output[:, list(fact.subject)] += noise
                        for at in workload.restored(component, layer):
                            if component == "attention_out":
                                on.out[at].output[:, position] = clean[at][0][position]
                            elif component == "mlp_out":
                                on.mlp[at].output[:, position] = clean[at][1][position]
                            else:
                                on.blocks[at].output[:, position] = clean[at][2][position]
                        logits = on.head.output[:, -1].save()
                    grid[position, number, kind] = log_probabilities(logits, fact.target).exp().mean()
        return grid

    def sentences(self, workload: Sentences) -> Answer:
        raise NotImplementedError(self.omitted["W7"])

    def continuations(self, workload: Continuations) -> Answer:
        raise NotImplementedError(_GENERATES)
