"""Plain transformers over a dataset, batched by hand: the strongest code for each workload that we could write.

Prompts of one length share batches, a prefix cache leaves one position a run (W6) or a suffix (W8), sentences are
sorted by length, and only what is read is unembedded: of a logit difference two rows of the unembedding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from tests.bench.batches import TOKENS, chunks, log_probabilities
from tests.bench.case_workloads import COMPONENTS, Continuations, Fact, Facts, Pair, Pairs, Sentences
from tests.bench.plain import entered, hooked, prefix_of
from tests.bench.workloads import Answer
from tests.support.hooks import modules_of


class Batched:
    """Hooks, batches and a prefix cache written by hand."""

    name = "plain transformers, batched by hand"
    omitted: Mapping[str, str] = {}

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules = modules_of(model)
        self.head_size = model.config.hidden_size // model.config.num_attention_heads
        # Continuations go on after an end token.
        assert model.generation_config is not None
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    @torch.no_grad()
    def pairs(self, workload: Pairs) -> Answer:
        total = torch.zeros(len(workload.layers) * workload.heads, dtype=torch.float64)
        cells = [(layer, head) for layer in workload.layers for head in range(workload.heads)]
        for alike in by_length(workload.cases):
            total += self._patched(alike, cells).double().sum(0)
        return (total / len(workload.cases)).view(len(workload.layers), workload.heads).numpy()

    def _patched(self, cases: Sequence[Pair], cells: Sequence[tuple[int, int]]) -> Tensor:
        """Logit differences [pairs, cells], of pairs of one length."""
        size, length = self.head_size, len(cases[0].tokens)
        sources: list[Tensor] = []

        def keep(_: int, value: Tensor) -> Tensor:
            sources.append(value[:, -1])
            return value

        with entered(self.modules.attention_projection, keep):
            self._final(input_ids=torch.tensor([case.source for case in cases]), use_cache=False)
        ids, cache = torch.tensor([case.tokens for case in cases]), DynamicCache(config=self.model.config)
        self._final(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        runs = [(pair, layer, head) for pair in range(len(cases)) for layer, head in cells]
        read = []
        # Each row copies the prefix: beyond some rows that costs more than larger products gain.
        for some in chunks(range(len(runs)), max(8, length // 4)):
            rows = [runs[number] for number in some]

            def patch(layer: int, value: Tensor, rows: list[tuple[int, int, int]] = rows) -> Tensor:
                for row, (pair, at, head) in enumerate(rows):
                    if at == layer:
                        where = slice(head * size, (head + 1) * size)
                        value[row, -1, where] = sources[layer][pair, where]
                return value

            of = [pair for pair, _, _ in rows]
            with entered(self.modules.attention_projection, patch):
                past = prefix_of(self.model, cache, length - 1, of)
                final = self._final(input_ids=ids[of, -1:], past_key_values=past, use_cache=True)
            read.append(differences(self.modules.unembedding.weight, final, [cases[pair] for pair in of]))
        return torch.cat(read).view(len(cases), len(cells))

    @torch.no_grad()
    def sentences(self, workload: Sentences) -> Answer:
        answer = torch.empty(len(workload), workload.layers, self.model.config.hidden_size, dtype=torch.bfloat16)
        for some in sorted_by_length(workload.cases):
            ids, mask, last = padded([workload.cases[number] for number in some])
            rows = torch.arange(len(some))
            kept: list[Tensor] = []

            def keep(
                _: int, value: Tensor, rows: Tensor = rows, last: Tensor = last, kept: list[Tensor] = kept
            ) -> Tensor:
                kept.append(value[rows, last].bfloat16())
                return value

            with hooked(self.modules.blocks, keep):
                self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            answer[some] = torch.stack(kept, 1)
        return answer.double().numpy()

    @torch.no_grad()
    def facts(self, workload: Facts) -> Answer:
        return workload.averaged([self._traced(workload, fact) for fact in workload.cases])

    def _traced(self, workload: Facts, fact: Fact) -> Answer:
        """[positions, layers, components]."""
        samples, length = workload.samples, len(fact.tokens)
        embedded = self.modules.embedding(torch.tensor(fact.tokens)).repeat(1 + samples, 1, 1)
        embedded[1:, list(fact.subject)] += torch.from_numpy(workload.noise(fact, self.model.config.hidden_size))
        places = dict(
            zip(COMPONENTS, (self.modules.blocks, self.modules.mlp_out, self.modules.attention_out), strict=True)
        )
        clean: dict[str, list[Tensor]] = {component: [] for component in COMPONENTS}

        def keep(component: str) -> Any:
            def kept(_: int, value: Tensor) -> Tensor:
                clean[component].append(value[0].clone())
                return value

            return kept

        cache = DynamicCache(config=self.model.config)
        with hooked_at(places, keep):
            final = self._final(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        baseline = log_probabilities(self.modules.unembedding(final[1:]), fact.target).exp().mean()
        cells = [(layer, component) for layer in workload.layers for component in COMPONENTS]
        grid = np.full((length, len(cells)), float(baseline))
        # Before the first corrupted position nothing can change what is read.
        for position in range(fact.subject[0], length):
            for some in chunks(range(len(cells)), samples * (length - position)):
                chosen = [cells[number] for number in some]
                restored = [(component, workload.restored(component, layer)) for layer, component in chosen]
                restore = partial(_restoring, restored, samples, clean, position)
                past = prefix_of(self.model, cache, position, list(range(1, 1 + samples)) * len(some))
                with hooked_at(places, restore):
                    suffix = embedded[1:, position:].repeat(len(some), 1, 1)
                    final = self._final(inputs_embeds=suffix, past_key_values=past, use_cache=True)
                read = log_probabilities(self.modules.unembedding(final), fact.target).exp()
                grid[position, some] = read.view(len(some), samples).mean(1).numpy()
        return grid.reshape(length, len(workload.layers), len(COMPONENTS))

    @torch.no_grad()
    def continuations(self, workload: Continuations) -> Answer:
        longest = max(map(len, workload.cases))
        ids = torch.tensor([[0] * (longest - len(case)) + list(case) for case in workload.cases])
        mask = torch.tensor([[0] * (longest - len(case)) + [1] * len(case) for case in workload.cases])
        vector, taken = torch.tensor(workload.vector), _Taken()

        def steer(layer: int, value: Tensor) -> Tensor:
            return value + vector if layer == workload.layer else value

        generate: Any = self.model.generate
        with hooked(self.modules.blocks, steer):
            generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=workload.new_tokens,
                logits_processor=LogitsProcessorList([taken]),
            )
        return torch.stack(taken.log_probabilities, 1).numpy()

    def _final(self, **inputs: Any) -> Tensor:
        """The final norm at the last position, [rows, D]."""
        output: Tensor = self.model.base_model(**inputs).last_hidden_state
        return output[:, -1].contiguous()


def _restoring(
    restored: Sequence[tuple[str, range]],
    samples: int,
    clean: Mapping[str, Sequence[Tensor]],
    position: int,
    component: str,
) -> Callable[[int, Tensor], Tensor]:
    """Puts clean states back at the first position of the suffix: each row's component, at its layers."""

    def change(layer: int, value: Tensor) -> Tensor:
        for number, (at, layers) in enumerate(restored):
            if at == component and layer in layers:
                value[number * samples : (number + 1) * samples, 0] = clean[component][layer][position]
        return value

    return change


class _Taken(LogitsProcessor):
    """Keeps the log-probability of the most probable token of every step, [rows]."""

    def __init__(self) -> None:
        self.log_probabilities: list[Tensor] = []

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        self.log_probabilities.append((scores.amax(-1) - scores.logsumexp(-1)).double())
        return scores


def by_length(cases: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Those whose prompts and sources are of one length; a pair has two of one length."""
    for length in sorted({len(case.tokens) for case in cases}):
        yield [case for case in cases if len(case.tokens) == length]


def differences(unembedding: Tensor, final: Tensor, cases: Sequence[Pair]) -> Tensor:
    """Logit differences [rows] of final states [rows, D]: two rows of the unembedding for each."""
    directions = unembedding[[case.target for case in cases]] - unembedding[[case.contrast for case in cases]]
    return (final * directions).sum(-1)


def sorted_by_length(cases: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Batches of cases that need little padding, by number."""
    batch: list[int] = []
    for number in sorted(range(len(cases)), key=lambda number: len(cases[number])):
        if batch and (len(batch) + 1) * len(cases[number]) > TOKENS:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def padded(cases: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask, [rows, T], padded on the right, and every row's last position."""
    longest = max(map(len, cases))
    ids = torch.tensor([[*case, *[0] * (longest - len(case))] for case in cases])
    last = torch.tensor([len(case) - 1 for case in cases])
    return ids, (torch.arange(longest) <= last[:, None]).long(), last


@contextmanager
def hooked_at(
    places: Mapping[str, Sequence[nn.Module]], change: Callable[[str], Callable[[int, Tensor], Tensor]]
) -> Iterator[None]:
    """Calls `change(component)` with each module's number and output, for all components at once."""
    with ExitStack() as stack:
        for component, modules in places.items():
            stack.enter_context(hooked(modules, change(component)))
        yield
