"""TransformerLens: `run_with_hooks` in the loop of its demonstrations, over a TransformerBridge.

https://github.com/TransformerLensOrg/TransformerLens. The bridge wraps the same weights and computes attention in its
explicit form, so that its hooks can see scores and patterns.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.bench.batches import log_probabilities, top
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron


def _tokenizer() -> PreTrainedTokenizerFast:
    """The bridge wants one; prompts are token ids, so that it is never asked."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<0>": 0}, unk_token="<0>")), eos_token="<0>")  # noqa: S106


def bridged(model: PreTrainedModel, directory: Path) -> TransformerBridge:
    """The bridge to a plain model, asked with token ids."""
    return TransformerBridge.boot_transformers(str(directory), hf_model=model, tokenizer=_tokenizer(), device="cpu")


class Loop:
    """One run with hooks a cell; clean states come from `run_with_cache`."""

    name = "TransformerLens, loop"
    omitted: Mapping[str, str] = {"W5": "no server: the 16 requests are compared with themselves, one after the other"}

    def __init__(self, model: PreTrainedModel, directory: Path) -> None:
        self.bridge = bridged(model, directory)
        self.hidden_size = model.config.hidden_size
        self._kept: tuple[tuple[int, ...], Tensor] | None = None

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        noise, where = workload.noise(self.hidden_size), list(workload.subject)
        names = [f"blocks.{layer}.hook_resid_post" for layer in workload.layers]
        _, cache = self.bridge.run_with_cache(torch.tensor([workload.tokens]), names_filter=names)
        batch = torch.tensor([workload.tokens]).expand(workload.samples, -1)

        def corrupt(value: Tensor, **_: Any) -> Tensor:
            value = value.clone()
            value[:, where] += noise
            return value

        def restore(value: Tensor, hook: Any, position: int) -> Tensor:
            value[:, position] = cache[hook.name][0, position]
            return value

        answer = np.empty(len(workload))
        for number, (position, layer) in enumerate(workload.cells):
            hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [
                ("hook_embed", corrupt),
                (f"blocks.{layer}.hook_resid_post", partial(restore, position=position)),
            ]
            logits = self.bridge.run_with_hooks(batch, fwd_hooks=hooks, return_type="logits")
            answer[number] = log_probabilities(logits[:, -1], workload.target).exp().mean()
        return answer

    @torch.no_grad()
    def neurons(self, workload: Neurons) -> Answer:
        def ablate(value: Tensor, unit: int, **_: Any) -> Tensor:
            value[:, -1, unit] = 0.0
            return value

        answer = np.empty(len(workload))
        for number, (layer, unit) in enumerate(workload.neurons):
            logits = self._run(workload.tokens, f"blocks.{layer}.mlp.hook_post", partial(ablate, unit=unit))
            answer[number] = log_probabilities(logits, workload.target)
        return answer

    @torch.no_grad()
    def heads(self, workload: Heads) -> Answer:
        def ablate(value: Tensor, unit: int, **_: Any) -> Tensor:
            value[:, :, unit] = 0.0
            return value

        answer = np.empty(len(workload))
        for number, (layer, unit) in enumerate(workload.heads):
            logits = self._run(workload.tokens, f"blocks.{layer}.attn.hook_z", partial(ablate, unit=unit))
            answer[number] = log_probabilities(logits, workload.target)
        return answer

    @torch.no_grad()
    def one_neuron(self, workload: OneNeuron) -> Answer:
        def scale(value: Tensor, **_: Any) -> Tensor:
            value[:, workload.positions[0] :, workload.neuron] *= workload.factor
            return value

        if workload.again and self._kept is not None and self._kept[0] == workload.tokens:
            before = self._kept[1]
        else:
            logits = self.bridge(torch.tensor([workload.tokens]), return_type="logits")
            before = top(logits[:, -1], workload.top)[0]
        self._kept = (workload.tokens, before)
        after = top(self._run(workload.tokens, f"blocks.{workload.layer}.mlp.hook_post", scale), workload.top)[0]
        return np.stack([before.numpy(), after.numpy()])

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(self.omitted["W5"])

    def _run(self, tokens: tuple[int, ...], name: str, hook: Any) -> Tensor:
        """Logits at the last position, [1, V]."""
        logits: Tensor = self.bridge.run_with_hooks(
            torch.tensor([tokens]), fwd_hooks=[(name, hook)], return_type="logits"
        )
        return logits[:, -1]
