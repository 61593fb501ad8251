"""ROME's own algorithm with plain hooks: every cell is one forward pass of 1 + S copies of the prompt.

Meng et al. 2022 (arXiv 2202.05262): row 0 is clean, rows 1 to S get noise, and at the restored place rows 1 to S are
given row 0's state. It traces and nothing else.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.bench.batches import log_probabilities
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron
from tests.support.hooks import modules_of

_ONLY = "it is the algorithm of causal tracing alone"


class RomeScript:
    """The loop of the published script."""

    name = "ROME's script, plain hooks"
    omitted: Mapping[str, str] = dict.fromkeys(("W2", "W3", "W4 first", "W4 again", "W4 last", "W5"), _ONLY)

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.modules = modules_of(model)

    @torch.no_grad()
    def grid(self, workload: Grid) -> Answer:
        noise, where = workload.noise(self.model.config.hidden_size), list(workload.subject)
        batch = torch.tensor([workload.tokens]).expand(1 + workload.samples, -1)

        def corrupt(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output[1:, where] += noise
            return output

        answer = np.empty(len(workload))
        for number, (position, layer) in enumerate(workload.cells):

            def restore(_: nn.Module, __: object, output: Tensor, position: int = position) -> Tensor:
                output[1:, position] = output[0, position]
                return output

            handles = [
                self.modules.embedding.register_forward_hook(corrupt),
                self.modules.blocks[layer].register_forward_hook(restore),
            ]
            try:
                logits = self.model(batch, use_cache=False).logits[1:, -1]
            finally:
                for handle in handles:
                    handle.remove()
            answer[number] = log_probabilities(logits, workload.target).exp().mean()
        return answer

    def neurons(self, workload: Neurons) -> Answer:
        raise NotImplementedError(_ONLY)

    def heads(self, workload: Heads) -> Answer:
        raise NotImplementedError(_ONLY)

    def one_neuron(self, workload: OneNeuron) -> Answer:
        raise NotImplementedError(_ONLY)

    def callers(self, workload: Callers) -> Answer:
        raise NotImplementedError(_ONLY)
