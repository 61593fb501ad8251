"""nnsight: in the loop of its tutorials, and batched with the blocks below the edit skipped from a cached state.

https://nnsight.net. The base model is wrapped, so that only the position that is read goes through the unembedding,
by hand: what `logits_to_keep` would do, without its slow product over a strided slice.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nnsight
import numpy as np
import torch
from nnsight import NNsight
from torch import Tensor
from transformers import PreTrainedModel

from tests.bench.batches import chunks, log_probabilities, top
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron

W5_REASON = "no server: the 16 requests are compared with themselves, one after the other"


class Wrapped:
    """The base model or the whole one under nnsight, with the names of the two families made one."""

    def __init__(self, model: PreTrainedModel, *, whole: bool = False) -> None:
        self.model = model
        self.envoy = NNsight(model if whole else model.base_model)
        gpt2 = model.config.model_type == "gpt2"
        base = (self.envoy.transformer if gpt2 else self.envoy.model) if whole else self.envoy
        self.blocks = base.h if gpt2 else base.layers
        self.embedding = base.wte if gpt2 else base.embed_tokens
        self.norm = base.ln_f if gpt2 else base.norm
        self.head: Any = self.envoy.lm_head if whole else None
        self.down = [block.mlp.c_proj if gpt2 else block.mlp.down_proj for block in self.blocks]
        self.out = [block.attn.c_proj if gpt2 else block.self_attn.o_proj for block in self.blocks]
        self.mlp = [block.mlp for block in self.blocks]
        self.head_size = model.config.hidden_size // model.config.num_attention_heads
        self.layers = len(self.down)

    def logits(self, final: Tensor) -> Tensor:
        """[rows, V] of the final norm's [rows, D]."""
        logits: Tensor = self.model.lm_head(final.contiguous())
        return logits

    def ids(self, tokens: Sequence[int], rows: int = 1) -> Tensor:
        """[rows, T]."""
        return torch.tensor([tokens], device=self.model.device).expand(rows, -1)

    def residuals(self, tokens: Sequence[int]) -> list[Tensor]:
        """What leaves each block, [1, T, D]."""
        with torch.no_grad(), self.envoy.trace(input_ids=self.ids(tokens)):
            kept = nnsight.save([block.output for block in self.blocks])
        return list(kept)


class Skipping:
    """Batched by hand; the blocks below the edit are skipped, with the cached residual stream in their place."""

    name = "nnsight, batched + skip"
    omitted: Mapping[str, str] = {"W5": W5_REASON}

    def __init__(self, model: PreTrainedModel) -> None:
        self.on = Wrapped(model)
        self._kept: tuple[Sequence[int], list[Tensor], Tensor] | None = None

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        on, where = self.on, list(workload.subject)
        noise = workload.noise(on.model.config.hidden_size).to(on.model.device, on.model.dtype)
        with on.envoy.trace(input_ids=on.ids(workload.tokens, 1 + workload.samples)):
            on.embedding.output[1:, where] += noise
            states = nnsight.save([block.output for block in on.blocks])
        answer = np.full(len(workload), np.nan)
        for layer in workload.layers:
            numbers = [number for number, cell in enumerate(workload.cells) if cell[1] == layer]
            clean, corrupted = states[layer][0], states[layer][1:]
            for some in chunks(numbers, len(workload.tokens) * workload.samples):
                patched = corrupted.repeat(len(some), 1, 1)
                for row, number in enumerate(some):
                    position = workload.cells[number][0]
                    patched[row * workload.samples : (row + 1) * workload.samples, position] = clean[position]
                final = self._above(layer, patched, workload.tokens)
                probabilities = log_probabilities(on.logits(final), workload.target).exp()
                answer[some] = probabilities.view(len(some), workload.samples).mean(1).numpy()
        return answer

    def _above(self, layer: int, entering: Tensor, tokens: Sequence[int]) -> Tensor:
        """The final norm at the last position, [rows, D], when `entering` leaves block `layer`."""
        on = self.on
        with on.envoy.trace(input_ids=on.ids(tokens, len(entering))):
            for below in range(layer + 1):
                on.blocks[below].skip(entering)
            final: Tensor = on.norm.output[:, -1].save()
        return final

    @torch.no_grad()
    def neurons(self, workload: Neurons) -> Answer:
        on, states = self.on, self.on.residuals(workload.tokens)
        answer = np.full(len(workload), np.nan)
        for layer, some in _by_layer(workload.neurons, len(workload.tokens)):
            units = [workload.neurons[number][1] for number in some]
            rows = torch.arange(len(some))
            with on.envoy.trace(input_ids=on.ids(workload.tokens, len(some))):
                for below in range(layer):
                    on.blocks[below].skip(states[layer - 1].expand(len(some), -1, -1))
                on.down[layer].input[rows, -1, units] = 0.0
                final = on.norm.output[:, -1].save()
            answer[some] = log_probabilities(on.logits(final), workload.target).numpy()
        return answer

    @torch.no_grad()
    def heads(self, workload: Heads) -> Answer:
        on, states = self.on, self.on.residuals(workload.tokens)
        answer = np.full(len(workload), np.nan)
        for layer, some in _by_layer(workload.heads, len(workload.tokens)):
            units = [workload.heads[number][1] for number in some]
            with on.envoy.trace(input_ids=on.ids(workload.tokens, len(some))):
                for below in range(layer):
                    on.blocks[below].skip(states[layer - 1].expand(len(some), -1, -1))
                for row, unit in enumerate(units):
                    on.out[layer].input[row, :, unit * on.head_size : (unit + 1) * on.head_size] = 0.0
                final = on.norm.output[:, -1].save()
            answer[some] = log_probabilities(on.logits(final), workload.target).numpy()
        return answer

    @torch.no_grad()
    def one_neuron(self, workload: OneNeuron) -> Answer:
        on, layer, first = self.on, workload.layer, workload.positions[0]
        if workload.again and self._kept is not None and self._kept[0] == workload.tokens:
            _, states, before = self._kept
            with on.envoy.trace(input_ids=on.ids(workload.tokens)):
                for below in range(layer):
                    on.blocks[below].skip(states[layer - 1])
                on.down[layer].input[:, first:, workload.neuron] *= workload.factor
                final = on.norm.output[:, -1].save()
            return np.stack([before.numpy(), top(on.logits(final), workload.top)[0].numpy()])
        with on.envoy.trace(input_ids=on.ids(workload.tokens, 2)):
            states = nnsight.save([block.output[:1] for block in on.blocks[:layer]])
            on.down[layer].input[1, first:, workload.neuron] *= workload.factor
            final = on.norm.output[:, -1].save()
        both = top(on.logits(final), workload.top)
        self._kept = (workload.tokens, list(states), both[0])
        return both.numpy()

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(W5_REASON)


def _by_layer(places: Sequence[tuple[int, int]], tokens: int) -> Iterator[tuple[int, list[int]]]:
    """The numbers of the places, in batches that share a block."""
    for layer in sorted({layer for layer, _ in places}):
        numbers = [number for number, place in enumerate(places) if place[0] == layer]
        for some in chunks(numbers, tokens):
            yield layer, some


class Loop:
    """One trace a cell, on the whole model, as the tutorials do."""

    name = "nnsight, loop"
    omitted: Mapping[str, str] = {"W5": W5_REASON}

    def __init__(self, model: PreTrainedModel) -> None:
        self.on = Wrapped(model, whole=True)
        self._kept: tuple[Sequence[int], Tensor] | None = None

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        on, where = self.on, list(workload.subject)
        states = on.residuals(workload.tokens)
        noise = workload.noise(on.model.config.hidden_size).to(on.model.device, on.model.dtype)
        batch = on.ids(workload.tokens, workload.samples)
        answer = np.empty(len(workload))
        for number, (position, layer) in enumerate(workload.cells):
            with on.envoy.trace(input_ids=batch):
                on.embedding.output[:, where] += noise
                on.blocks[layer].output[:, position] = states[layer][0, position]
                logits = on.head.output[:, -1].save()
            answer[number] = log_probabilities(logits, workload.target).exp().mean()
        return answer

    @torch.no_grad()
    def neurons(self, workload: Neurons) -> Answer:
        on, ids = self.on, self.on.ids(workload.tokens)
        answer = np.empty(len(workload))
        for number, (layer, unit) in enumerate(workload.neurons):
            with on.envoy.trace(input_ids=ids):
                on.down[layer].input[:, -1, unit] = 0.0
                logits = on.head.output[:, -1].save()
            answer[number] = log_probabilities(logits, workload.target)
        return answer

    @torch.no_grad()
    def heads(self, workload: Heads) -> Answer:
        on, ids, size = self.on, self.on.ids(workload.tokens), self.on.head_size
        answer = np.empty(len(workload))
        for number, (layer, unit) in enumerate(workload.heads):
            with on.envoy.trace(input_ids=ids):
                on.out[layer].input[:, :, unit * size : (unit + 1) * size] = 0.0
                logits = on.head.output[:, -1].save()
            answer[number] = log_probabilities(logits, workload.target)
        return answer

    @torch.no_grad()
    def one_neuron(self, workload: OneNeuron) -> Answer:
        on, ids = self.on, self.on.ids(workload.tokens)
        if workload.again and self._kept is not None and self._kept[0] == workload.tokens:
            before = self._kept[1]
        else:
            with on.envoy.trace(input_ids=ids):
                logits = on.head.output[:, -1].save()
            before = top(logits, workload.top)[0]
        self._kept = (workload.tokens, before)
        with on.envoy.trace(input_ids=ids):
            on.down[workload.layer].input[:, workload.positions[0] :, workload.neuron] *= workload.factor
            changed = on.head.output[:, -1].save()
        return np.stack([before.numpy(), top(changed, workload.top)[0].numpy()])

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(W5_REASON)
