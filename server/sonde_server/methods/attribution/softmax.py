"""What patching one query or key does to the pattern, with the softmax recomputed, times the gradient of the pattern.

Kramar, Lieberum, Shah, Nanda, "AtP*: An efficient and scalable method for localizing LLM behaviour to components"
(2024, arXiv 2403.00745), section 3.1.1. Attention itself computes the scores of the patched queries and keys, so masks,
windows and caps apply.
"""

import torch
from torch import Tensor

from ...engine.gradients import Descent


def query_effects(descent: Descent, layer: int, query: Tensor, key: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """Effects [G, n, H] of taking each query from `source` [n, H, d]; `gradient` [G, H, n, n] is the pattern's."""
    _, pattern = descent.pairs(layer, query, key)
    _, patched = descent.pairs(layer, source, key)
    return ((patched - pattern) * gradient).sum(-1).transpose(-1, -2)


def key_effects(descent: Descent, layer: int, query: Tensor, key: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """Effects [G, n, K] of taking each key alone from `source` [n, K, d], for all queries of its heads.

    With one score s of a row replaced by s', its weight p becomes w / (w + r), where w = p exp(s' - s) and r is what
    the others weigh. All weights of the row then move the metric by (w - p) (g - a) / (w + r), where g is the
    gradient of the key's weight and a the mean of the row's gradients by p.
    """
    scores, pattern = (part.double() for part in descent.pairs(layer, query, key))
    change = descent.pairs(layer, query, source)[0].double() - scores
    total = pattern.sum(-1, keepdim=True)
    # A pattern sums to 1 up to rounding, unless a sink takes a share.
    sinks = descent.decoder.attention_settings(layer).sinks
    sink = torch.zeros_like(total) if sinks is None else 1 - total
    # The largest weight tells what the row was divided by, whatever else was in the sum.
    largest = scores.argmax(-1, keepdim=True)
    weight = (scores - scores.gather(-1, largest)).exp() * pattern.gather(-1, largest) / (total + sink)
    others = weight.sum(-1, keepdim=True) - weight + sink
    moved = weight * change.expm1() / (weight * change.exp() + others)
    # Infinite: the key takes the whole row. Not a number: it is masked, or the only key.
    moved = torch.where((weight * change.exp()).isinf(), 1.0, moved).nan_to_num(0.0)
    g = gradient.double()
    effects = (moved * (g - (weight * g).sum(-1, keepdim=True))).sum(-2)  # [G, H, n]
    by_key: Tensor = effects.unflatten(1, (key.shape[1], -1)).sum(2).transpose(-1, -2)
    return by_key
