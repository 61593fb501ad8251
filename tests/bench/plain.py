"""Plain transformers with a hand-made prefix cache: the best that hooks and `past_key_values` give.

Keys and values of the positions before the first edited one are computed once; all cells of a position, at whatever
block they are edited, are rows of one forward pass; only the position that is read is unembedded. Edits at all
positions leave nothing to cache, so there it is plain batching.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tests.bench.batches import chunks, log_probabilities, top
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron
from tests.support.hooks import modules_of


class PrefixCache:
    """Hooks, batches and a prefix cache written by hand."""

    name = "plain transformers, prefix cache"
    omitted: Mapping[str, str] = {"W5": "no server: the 16 requests are compared with themselves, one after the other"}

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules = modules_of(model)
        self.head_size = model.config.hidden_size // model.config.num_attention_heads
        self._kept: tuple[Sequence[int], Tensor, DynamicCache] | None = None

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        samples, first = workload.samples, min(workload.subject)
        embedded = self.modules.embedding(self._ids(workload.tokens)[0]).repeat(1 + samples, 1, 1)
        embedded[1:, list(workload.subject)] += workload.noise(self.model.config.hidden_size).to(embedded)
        states: list[Tensor] = []

        def keep(_: int, value: Tensor) -> Tensor:
            states.append(value)
            return value

        with hooked(self.modules.blocks, keep):
            cache = DynamicCache(config=self.model.config)
            final = self._final(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        baseline = log_probabilities(self._logits(final[1:]), workload.target).exp().mean()
        answer = np.full(len(workload), float(baseline))
        for position in workload.positions:
            # Before the first corrupted position nothing can change what is read.
            if position < first:
                continue
            numbers = [number for number, cell in enumerate(workload.cells) if cell[0] == position]
            for some in chunks(numbers, samples * (len(workload.tokens) - position)):
                layers = [workload.cells[number][1] for number in some]
                prefix = prefix_of(self.model, cache, position, list(range(1, 1 + samples)) * len(some))
                with hooked(self.modules.blocks, _restoration(layers, samples, states, position)):
                    suffix = embedded[1:, position:].repeat(len(some), 1, 1)
                    final = self._final(inputs_embeds=suffix, past_key_values=prefix, use_cache=True)
                read = log_probabilities(self._logits(final), workload.target).exp()
                answer[some] = read.view(len(some), samples).mean(1).numpy()
        return answer

    @torch.no_grad()
    def neurons(self, workload: Neurons) -> Answer:
        ids = self._ids(workload.tokens)
        cache = DynamicCache(config=self.model.config)
        self._final(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        answer = np.full(len(workload), np.nan)
        # Each row copies the prefix: beyond some rows that costs more than larger products gain.
        for some in chunks(range(len(workload)), max(8, len(workload.tokens) // 4)):
            places = [workload.neurons[number] for number in some]

            def ablate(layer: int, value: Tensor, places: list[tuple[int, int]] = places) -> Tensor:
                rows = [row for row, place in enumerate(places) if place[0] == layer]
                if rows:
                    value[rows, -1, [places[row][1] for row in rows]] = 0.0
                return value

            prefix = prefix_of(self.model, cache, len(workload.tokens) - 1, [0] * len(some))
            with entered(self.modules.mlp_projection, ablate):
                last = ids[:, -1:].expand(len(some), -1)
                final = self._final(input_ids=last, past_key_values=prefix, use_cache=True)
            answer[some] = log_probabilities(self._logits(final), workload.target).numpy()
        return answer

    @torch.no_grad()
    def heads(self, workload: Heads) -> Answer:
        answer = np.full(len(workload), np.nan)
        for some in chunks(range(len(workload)), len(workload.tokens)):
            places = [workload.heads[number] for number in some]

            def ablate(layer: int, value: Tensor, places: list[tuple[int, int]] = places) -> Tensor:
                for row, (at, head) in enumerate(places):
                    if at == layer:
                        value[row, :, head * self.head_size : (head + 1) * self.head_size] = 0.0
                return value

            with entered(self.modules.attention_projection, ablate):
                ids = self._ids(workload.tokens).expand(len(some), -1)
                final = self._final(input_ids=ids, use_cache=False)
            answer[some] = log_probabilities(self._logits(final), workload.target).numpy()
        return answer

    @torch.no_grad()
    def one_neuron(self, workload: OneNeuron) -> Answer:
        kept = self._kept if workload.again and self._kept and self._kept[0] == workload.tokens else None
        first = workload.positions[0]
        ids, rows = self._ids(workload.tokens), 2 if kept is None else 1
        cache = DynamicCache(config=self.model.config) if kept is None else kept[2]
        if first and kept is None:
            self._final(input_ids=ids[:, :first], past_key_values=cache, use_cache=True)

        def scale(layer: int, value: Tensor) -> Tensor:
            if layer == workload.layer:
                value[-1, :, workload.neuron] *= workload.factor
            return value

        prefix = {"past_key_values": prefix_of(self.model, cache, first, [0] * rows)} if first else {}
        with entered(self.modules.mlp_projection, scale):
            final = self._final(input_ids=ids[:, first:].expand(rows, -1), use_cache=bool(first), **prefix)
        read = top(self._logits(final), workload.top)
        both = read if kept is None else torch.stack([kept[1], read[0]])
        self._kept = (workload.tokens, both[0], cache)
        return both.numpy()

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(self.omitted["W5"])

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        """[1, T]."""
        return torch.tensor([tokens], device=self.model.device)

    def _final(self, **inputs: Any) -> Tensor:
        """The final norm at the last position, [rows, D]."""
        output: Tensor = self.model.base_model(**inputs).last_hidden_state
        return output[:, -1].contiguous()

    def _logits(self, final: Tensor) -> Tensor:
        logits: Tensor = self.modules.unembedding(final)
        return logits


def prefix_of(model: PreTrainedModel, cache: DynamicCache, length: int, rows: Sequence[int]) -> DynamicCache:
    """A cache with the first `length` positions of these rows of another."""
    # The cache concatenates what comes, so that an expanded view costs nothing before the first block that runs.
    index = None if len(set(rows)) == 1 else torch.tensor(rows, device=model.device)
    prefix = DynamicCache(config=model.config)
    for number, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        parts = [part[:, :, :length] for part in (layer.keys, layer.values)]
        if index is None:
            parts = [part[rows[0] : rows[0] + 1].expand(len(rows), -1, -1, -1) for part in parts]
        else:
            parts = [part[index] for part in parts]
        prefix.update(parts[0], parts[1], number)
    return prefix


def _restoration(
    layers: Sequence[int], samples: int, states: Sequence[Tensor], position: int
) -> Callable[[int, Tensor], Tensor]:
    """Puts the clean state of each block's own rows back at the first position of the suffix."""

    def restore(layer: int, value: Tensor) -> Tensor:
        for number, at in enumerate(layers):
            if at == layer:
                value[number * samples : (number + 1) * samples, 0] = states[layer][0, position]
        return value

    return restore


@contextmanager
def hooked(modules: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Calls `change` with each module's number and output."""
    with ExitStack() as stack:
        for number, module in enumerate(modules):

            def hook(_: nn.Module, __: Any, output: Any, number: int = number) -> Any:
                # Attention gives its weights too.
                if isinstance(output, tuple):
                    return (change(number, output[0]), *output[1:])
                return change(number, output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def entered(modules: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Calls `change` with each module's number and input."""
    with ExitStack() as stack:
        for number, module in enumerate(modules):

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], number: int = number) -> tuple[Tensor, ...]:
                return (change(number, inputs[0]), *inputs[1:])

            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield
