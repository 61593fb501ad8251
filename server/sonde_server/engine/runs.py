"""The engine's vocabulary: bases and their states, runs with edits, what is read of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from ..questions.places import Component
from ..questions.prompts import Target
from .sampling import Choice


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an edit does to the values it selects. `values` broadcast, from the right, against the selection.

    A knockout has no values: it forbids `keys` (None: all) to the selected heads and queries.
    """

    kind: Literal["multiply", "add", "set", "project", "knockout"]
    values: Tensor | float | None = None
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PlacedEdit:
    """A change of one component in one layer; `receipt` is the column its distance is added to."""

    component: Component
    layer: int
    positions: tuple[int, ...]
    units: tuple[int, ...] | None
    change: Change
    receipt: int = 0


@dataclass(frozen=True, slots=True)
class Capture:
    """Values to be copied out of a run, in the shape of the contract, cut to positions and units."""

    component: Component
    layer: int
    positions: tuple[int, ...]
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A prompt run in full and kept: clean, or with its token embeddings changed by `corruption`.

    `together`: how many corrupted ones are computed in one batch, for their last bits depend on it.
    """

    tokens: tuple[int, ...]
    corruption: PlacedEdit | None = None
    together: int = 1


@dataclass(slots=True, eq=False)
class State:
    """What is kept of a base run: all that a run over it restarts from.

    embedding [T, D]; residual: layers + 1 of [T, D], the stream before each block and after the last;
    keys and values: one [T, K, d] a layer, as attention received them; logits: [V], of the positions that were read;
    prediction: what was read of it last, and how; inside: what runs over it went on from inside a block (midblock.py).
    A state that is still to be computed is empty. `number` counts the states of a process. Batches are ordered by it, so
    that results do not depend on where in memory a state lies.
    """

    tokens: tuple[int, ...]
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    prediction: "tuple[object, Result] | None" = None
    number: int = field(default_factory=count(1).__next__)
    inside: dict[object, dict[Component, Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Empties it, to be computed anew."""
        for part in (self.residual, self.keys, self.values, self.logits, self.inside):
            part.clear()
        self.prediction = None

    @property
    def bytes(self) -> int:
        """Memory this state holds."""
        tensors = [self.embedding, *self.residual, *self.keys, *self.values, *self.logits.values()]
        return sum(map(_bytes, tensors)) + self.inside_bytes

    @property
    def inside_bytes(self) -> int:
        """What `inside` has of it."""
        return sum(_bytes(tensor) for kept in list(self.inside.values()) for tensor in kept.values())


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """How the next-token distribution at `position` is read.

    `clean` is the unchanged run. Where there are no targets, its most likely token is the one; with `divergence` KL is
    taken from it. It may still be empty: it has to be computed, or read, before what is read beside it.
    """

    position: int
    targets: tuple[Target, ...] = ()
    top_k: int = 0
    clean: State | None = None
    divergence: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A base, what is changed in it, and what is read. `receipts`: how many distances are reported.

    `choice`: which token follows its last position; such a run can be continued.
    """

    base: State
    edits: Sequence[PlacedEdit] = ()
    reading: Reading | None = None
    captures: tuple[Capture, ...] = ()
    receipts: int = 0
    choice: Choice | None = None


@dataclass(slots=True, eq=False)
class Result:
    """What a run gave; everything on the CPU, in float32. `token`: the one chosen, None where none was or could be."""

    log_probabilities: Tensor | None = None
    logits: Tensor | None = None
    top_tokens: Tensor | None = None
    top_log_probabilities: Tensor | None = None
    kl_divergence: float | None = None
    captures: list[Tensor] = field(default_factory=list)
    edit_norms: Tensor | None = None
    token: int | None = None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
