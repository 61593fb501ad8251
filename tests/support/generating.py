"""Generation as it is told in the contract, recomputed in full for every token: no cache, no batch.

The oracle runs prompt and continuation anew for each token. The prompt's part of every activation is edited as in a
run of the prompt alone; each later position is edited alone, with the keys that there are up to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.hooks import attach
from tests.support.oracle import UNIT_FIRST, UNLAYERED, Edit, Oracle


def continued_logits(
    model: Oracle,
    ids: Sequence[int],
    said: Sequence[int],
    edits: Sequence[Edit] = (),
    sources: Sequence[Sequence[int]] = (),
    values: dict[tuple[str, int], Tensor] | None = None,
) -> Tensor:
    """[1 + said, V]: the logits after the prompt, and after each token of its continuation.

    `values` receives every component's value at prompt and continuation, after its edits, without batch axis.
    """
    prompt = len(ids)
    source_runs = {number: model.run(source) for number, source in enumerate(sources)}

    def visit(component: str, layer: int, value: Tensor) -> Tensor:
        current = value[0].clone()
        for edit in edits:
            if edit.site.component == component and (component in UNLAYERED or layer in edit.site.layers):
                _edit_prompt(model, edit, layer, current, prompt, source_runs)
                for position in range(prompt, prompt + len(said)):
                    if edit.site.from_position is not None and edit.site.from_position <= position:
                        _edit_one(model, edit, current, position, prompt)
        return current[None]

    logits: list[Tensor] = []

    def last(component: str, layer: int, value: Tensor) -> Tensor:
        changed = visit(component, layer, value)
        if values is not None:
            values[component, layer] = changed[0].clone()
        if component == "LOGITS":
            logits.append(changed[0])
        return changed

    with torch.no_grad(), attach(model.model, last):
        model.model(torch.tensor([[*ids, *said]]), use_cache=False)
    return logits[0][prompt - 1 :]


def _edit_prompt(
    model: Oracle, edit: Edit, layer: int, value: Tensor, prompt: int, source_runs: dict[int, oracle.Run]
) -> None:
    inside = (slice(None), slice(prompt), slice(prompt)) if edit.site.component in UNIT_FIRST else (slice(prompt),)
    value[inside] = model._edited(edit, layer, value[inside].clone(), source_runs)[0]


def _edit_one(model: Oracle, edit: Edit, value: Tensor, position: int, prompt: int) -> None:
    """One generated position; scores and patterns [units, keys up to it], everything else [units, ...]."""
    units = list(edit.site.units) or list(range(model.units(edit.site.component)))
    if edit.site.component in UNIT_FIRST:
        where: tuple[Any, ...] = (torch.tensor(units)[:, None], position, torch.arange(position + 1)[None])
    else:
        where = (position, torch.tensor(units))
    before = value[where].unsqueeze(1 if edit.site.component in UNIT_FIRST else 0)
    if isinstance(edit.operation, oracle.Knockout):
        after = before.clone()
        after[..., [key % prompt for key in edit.operation.key_positions] or list(range(position + 1))] = -torch.inf
    else:
        masked = torch.isneginf(before)
        alone = Edit(replace(edit.site, from_position=None, positions=(0,)), edit.operation)
        after = model._operated(alone, 0, before.masked_fill(masked, 0.0), {}).masked_fill(masked, -torch.inf)
    value[where] = after.expand(before.shape).reshape(value[where].shape)


def nucleus(logits: Tensor, temperature: float, top_p: float) -> list[int]:
    """The fewest most probable tokens that together have `top_p`, counted one by one; of equal ones the lower ids."""
    probabilities = torch.softmax(logits.double() / temperature, -1).tolist()
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token)):
        if total >= top_p:
            break
        kept.append(token)
        total += probabilities[token]
    return kept


def gumbel(seed: int, steps: int, vocabulary: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """[steps, V] noise, as the contract says that it is drawn."""
    uniform = np.random.RandomState(seed).random_sample((steps, vocabulary))
    return -np.log(-np.log(uniform))
