"""What the batched contenders share: how many rows fit a batch, and what is read of the logits."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# About where a product of 2 threads stops gaining from more rows; larger batches were no faster. A GPU takes more.
TOKENS = 16384 if torch.cuda.is_available() else 2048


def chunks(numbers: Sequence[int], tokens_each: int) -> Iterator[list[int]]:
    """Cuts a list so that a batch has about TOKENS tokens, at least one entry."""
    size = max(1, TOKENS // tokens_each)
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def log_probabilities(logits: Tensor, target: int) -> Tensor:
    """Of one token, [rows], in float64 from logits [rows, V]."""
    # The sum in float32 is exact enough, and reading every logit twice in float64 would be what is measured.
    return (logits[:, target].double() - logits.logsumexp(-1).double()).cpu()


def top(logits: Tensor, count: int) -> Tensor:
    """The largest log-probabilities, [rows, count], in float64."""
    return torch.log_softmax(logits, -1).topk(count, -1).values.double().cpu()
