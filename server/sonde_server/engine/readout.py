"""Reads the next-token distribution: targets, top tokens, divergence."""

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.costs import LOGITS_KEPT
from ..questions.prompts import Target
from .runs import Reading, Result, State


def logits_of(decoder: Decoder, state: State, position: int) -> Tensor:
    """Next-token logits [V] of a base run. They are kept with its state."""
    if position not in state.logits:
        if len(state.logits) >= LOGITS_KEPT:
            state.logits.pop(next(iter(state.logits)))
        state.logits[position] = decoder.unembed(decoder.norm(state.residual[-1][position : position + 1]))[0].float()
    return state.logits[position]


def read(decoder: Decoder, logits: Tensor, reading: Reading) -> list[Result]:
    """What `reading` asks for, from logits [R, V], one Result for each row. On a CPU, float32 logits are overwritten.

    A second tensor of that size would cost more than the softmax, because the allocator returns memory of that size to
    the system and every page of it is mapped anew.
    """
    logits = logits.float()
    clean = None
    if reading.clean is not None and (reading.divergence or not reading.targets):
        clean = logits_of(decoder, reading.clean, reading.position).float()
    targets = reading.targets
    if not targets and clean is not None:
        targets = (Target(int(clean.topk(max(1, reading.top_k)).indices[0])),)
    tokens = torch.tensor([target.token for target in targets], dtype=torch.long, device=logits.device)
    values = logits[:, tokens]
    contrasts = [target.contrast for target in targets]
    if any(contrast is not None for contrast in contrasts):
        index = torch.tensor([0 if c is None else c for c in contrasts], device=logits.device)
        used = torch.tensor([c is not None for c in contrasts], device=logits.device)
        values = torch.where(used, values - logits[:, index], values)
    top_tokens = logits.topk(reading.top_k, dim=-1).indices
    log_probabilities = torch.log_softmax(logits, dim=-1, out=logits if logits.device.type == "cpu" else None)
    top_values = log_probabilities.gather(-1, top_tokens)
    kl = None
    if reading.divergence and clean is not None:
        kl = divergence(torch.log_softmax(clean, dim=-1), log_probabilities).tolist()
    chosen, values = log_probabilities[:, tokens].cpu(), values.cpu()
    top_tokens, top_values = top_tokens.int().cpu(), top_values.cpu()
    return [
        Result(chosen[row], values[row], top_tokens[row], top_values[row], None if kl is None else kl[row])
        for row in range(len(logits))
    ]


def divergence(reference: Tensor, log_probabilities: Tensor) -> Tensor:
    """KL(reference || row) of log-probabilities [V] and [R, V], in nats. Rounding never makes it negative."""
    weight = reference.exp()
    # A token of probability 0 adds nothing, whatever its other probability is.
    terms = torch.where(weight > 0, weight * (reference - log_probabilities), 0.0)
    return terms.sum(-1).clamp_min(0.0)
