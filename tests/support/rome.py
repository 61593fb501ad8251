"""Causal tracing after Meng et al. 2022 (arXiv 2202.05262), written from the paper and the published algorithm.

One forward pass of 1 + S copies of the prompt for every cell: row 0 is clean, rows 1 to S get noise on the subject's
token embeddings, and at the restored place rows 1 to S are given row 0's state. It shares with tests/support/hooks.py
only the names of modules, so that it also checks the oracle's own hooks where the two overlap.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.support.hooks import attach, modules_of
from tests.support.oracle import UNIT_FIRST, UNLAYERED, Target, window_layers

WINDOWED = ("MLP_OUT", "ATTENTION_OUT")
DEFAULT_COMPONENTS = ("RESIDUAL_POST", "MLP_OUT", "ATTENTION_OUT")


@dataclass(frozen=True)
class Corruption:
    """What takes the place of, or is added to, the embeddings at some positions, one row per sample."""

    positions: tuple[int, ...]
    values: npt.NDArray[np.float32]
    """[samples, positions, D]."""
    replace: bool = False


@dataclass(frozen=True)
class Samples:
    """What is measured of one cell: by target, over samples."""

    probabilities: npt.NDArray[np.float64]
    """[targets, samples]."""
    logits: npt.NDArray[np.float64]
    """[targets, samples]; differences where there is a contrast."""


def embeddings(model: Any) -> Tensor:
    """What the embedding gives of every token, [V, D]; some scale what their weight holds."""
    embedding = modules_of(model).embedding
    table: Tensor = embedding(torch.arange(len(embedding.weight))).detach()
    return table


def gaussian(
    model: Any,
    positions: Sequence[int],
    deviations: float = 3.0,
    samples: int = 10,
    seed: int = 1,
    scale: float | None = None,
) -> tuple[Corruption, float]:
    """ROME's noise: RandomState(seed).randn(S, n, D) times `scale`, or times so many deviations of the embedding."""
    table = embeddings(model)
    deviation = deviations * float(table.double().std(unbiased=True)) if scale is None else scale
    draw = np.random.RandomState(seed).randn(samples, len(positions), table.shape[1])
    return Corruption(tuple(positions), (deviation * draw).astype(np.float32)), deviation


def counterfactual(model: Any, ids: Sequence[int], other: Sequence[int]) -> Corruption:
    """The other prompt's embeddings where the two differ."""
    differ = tuple(index for index, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b)
    return Corruption(differ, embeddings(model)[[other[index] for index in differ]][None].numpy(), replace=True)


@torch.no_grad()
def cell(
    model: Any,
    ids: Sequence[int],
    corruption: Corruption,
    targets: Sequence[Target],
    restored: Sequence[tuple[str, int, int]] = (),
    position: int = -1,
) -> Samples:
    """Runs the batch with some states restored, each (component, layer, position); layer 0 where there are none."""
    values = torch.from_numpy(corruption.values)
    where = list(corruption.positions)

    def corrupt(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for index, at in enumerate(where):
            if corruption.replace:
                output[1:, at] = values[:, index]
            else:
                output[1:, at] += values[:, index]
        return output

    def restore(component: str, layer: int, value: Tensor) -> Tensor:
        value = value.clone()
        for name, at_layer, at in restored:
            if (name, at_layer) == (component, layer):
                if component in UNIT_FIRST:
                    value[1:, :, at] = value[0, :, at]
                else:
                    value[1:, at] = value[0, at]
        return value

    with ExitStack() as stack:
        stack.callback(modules_of(model).embedding.register_forward_hook(corrupt).remove)
        # Hooks run in the order of registration: a restoration of the embedding comes after its corruption.
        stack.enter_context(attach(model, restore))
        batch = torch.tensor([list(ids)] * (1 + len(values)))
        logits = model(batch, use_cache=False).logits[1:, position].double()
    probabilities = logits.softmax(-1)
    difference = [
        logits[:, target.token] - (0.0 if target.contrast is None else logits[:, target.contrast]) for target in targets
    ]
    return Samples(
        np.stack([probabilities[:, target.token].numpy() for target in targets]),
        np.stack([column.numpy() for column in difference]),
    )


def restored_states(component: str, layer: int, position: int, window: int, layers: int) -> list[tuple[str, int, int]]:
    """The states of one cell: a window of layers for what a module adds, one layer for everything else."""
    if component in UNLAYERED:
        return [(component, 0, position)]
    chosen = window_layers(layer, window, layers) if component in WINDOWED else [layer]
    return [(component, each, position) for each in chosen]


def grid(
    model: Any,
    ids: Sequence[int],
    corruption: Corruption,
    targets: Sequence[Target],
    component: str,
    layers: Sequence[int],
    positions: Sequence[int],
    *,
    window: int = 10,
    position: int = -1,
) -> Samples:
    """All cells of one component: both arrays [positions, layers, targets, samples]."""
    depth = len(modules_of(model).blocks)
    cells = [
        [
            cell(model, ids, corruption, targets, restored_states(component, layer, at, window, depth), position)
            for layer in ([0] if component in UNLAYERED else layers)
        ]
        for at in positions
    ]
    return Samples(
        np.array([[one.probabilities for one in row] for row in cells]),
        np.array([[one.logits for one in row] for row in cells]),
    )
