"""The counted minimum: what a workload would take if every position of every block ran as fast as in one large pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tests.support.hooks import modules_of


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the plain model on this machine, at its best batch."""

    token_layer: float
    """Seconds for one position in one block."""
    reading: float
    """Seconds for one row of the unembedding."""
    forward: float
    """Seconds for one plain forward pass of one prompt."""

    def minimum(self, token_layers: int, readings: int) -> float:
        """Seconds."""
        return token_layers * self.token_layer + readings * self.reading


@torch.no_grad()
def rates(model: PreTrainedModel, length: int, tokens: int = 2048) -> Rates:
    """Measures the plain model with prompts of this length."""
    modules, vocabulary = modules_of(model), int(model.config.vocab_size)
    rows = max(1, tokens // length)
    ids = torch.arange(rows * length, device=model.device).view(rows, length) % vocabulary
    states = torch.ones(256, int(model.config.hidden_size), device=model.device, dtype=model.dtype)
    return Rates(
        _best(lambda: model.base_model(ids, use_cache=False)) / (rows * length * len(modules.blocks)),
        _best(lambda: modules.unembedding(states)) / len(states),
        _best(lambda: model(ids[:1], use_cache=False), 5),
    )


def _best(call: Callable[[], object], times: int = 3) -> float:
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)
