"""The engine's vocabulary: bases and their states, runs with edits, what is read of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..questions.activations import Pooling
from ..questions.extents import Detoured
from ..questions.images import Image
from ..questions.places import Component
from ..questions.prompts import Prompt, Target
from .sampling import Choice, Taken


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an edit does to the values it selects. `values` broadcast, from the right, against the selection.

    A knockout has no values: the selected heads and queries may not attend to `keys` (None: to any).
    """

    kind: Literal["multiply", "add", "set", "project", "knockout"]
    values: Tensor | float | None = None
    keys: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PlacedEdit:
    """A change of one component in one layer. Its distance is added to column `receipt` of the run's distances."""

    component: Component
    layer: int
    positions: tuple[int, ...]
    units: tuple[int, ...] | None
    change: Change
    receipt: int = 0


@dataclass(frozen=True, slots=True)
class Capture:
    """Values that are copied out of a run at some positions and units, in the contract's shape.

    `rows`: how many of the positions belong to each row, over which `pooling` joins them.
    """

    component: Component
    layer: int
    positions: tuple[int, ...]
    units: tuple[int, ...] | None = None
    pooling: Pooling = Pooling.NONE
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Send:
    """A change of what a sender writes to the residual stream, that the run itself does not see.

    `edit` says how the sender's value would change, and its receipt is told as that of other edits. What it would then
    write, less what it writes in the run, is added to column `column` of the run's detour. Sends of one column and one
    place act in their order. `values` are the base's, at the edit's positions [positions, all units, ...]. They are
    used if the sender lies below the first block that the run computes.
    """

    edit: PlacedEdit
    column: int = 0
    values: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Receivers of one component and layer, and which columns of a detour each of them sees.

    columns: bool [units, columns], of all units of QUERY, KEY and VALUE; one unit of MLP_OUT and of LOGITS (layer 0).
    positions: where they see them. A receiver may have several, with different positions.
    """

    component: Component
    layer: int
    columns: Tensor
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Through:
    """Heads of a layer's HEAD_OUT, or its MLP (`units` None), that see a column and hand on in it what they make of it.

    positions: where the column can differ from 0. stream: of an MLP below the first block that the run computes, the
    stream [positions, D] that it reads in the base.
    """

    component: Component
    layer: int
    column: int
    positions: tuple[int, ...]
    units: tuple[int, ...] | None = None
    stream: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Detour:
    """Changes that go along paths of the residual stream instead of into the run (graph.py in questions has the nodes).

    Every receiver reads the stream with the columns added that it sees. A column is a stream of its own, 0 at first, to
    which its sends add, and what goes through a node.

    Runs that differ in `reads` alone are best made with `dataclasses.replace`: those with the same `sends` and
    `through` are computed together. They share what is `known`: what senders write with the base's values.
    """

    columns: int
    sends: tuple[Send, ...]
    reads: tuple[Reads, ...]
    through: tuple[Through, ...] = ()
    known: dict[object, Tensor] = field(default_factory=dict)

    @property
    def detoured(self) -> Detoured:
        """Its places, which decide what the run computes."""
        return Detoured([send.edit for send in self.sends], self.reads, self.through)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A run of a whole prompt that is kept: clean, or with its token embeddings changed by `corruption`.

    `batch`: how many corrupted bases are computed in one batch. It is part of a base's identity because it affects the
    last bits.
    """

    tokens: tuple[int, ...]
    corruption: PlacedEdit | None = None
    batch: int = 1
    image: Image | None = None

    @classmethod
    def of(cls, prompt: Prompt, corruption: PlacedEdit | None = None, batch: int = 1) -> "Base":
        """That of a prompt, with its image."""
        return cls(prompt.tokens, corruption, batch, prompt.image)


class Asked(NamedTuple):
    """What was read of a base run; the same reading gives the same numbers."""

    position: int
    targets: tuple[Target, ...]
    top_k: int
    alone: bool
    divergence: bool


class Midway(NamedTuple):
    """Values inside a block of a base run: which components, at which positions."""

    layer: int
    positions: tuple[int, ...]
    components: frozenset[Component]


@dataclass(slots=True, eq=False)
class State:
    """What is kept of a base run, for runs over it to restart from. It is empty until it has been computed.

    embedding: [T, D].
    residual: layers + 1 of [T, D], the stream before each block and after the last.
    keys and values: one [T, K, d] for each layer, as attention received them.
    logits: [V], of the positions that were read.
    prediction: the last reading of it, and its result.
    midway: intermediate values of blocks, from which later runs resume (midblock.py).
    image: that of its prompt.
    number: counts the states of a process. Batches are ordered by it, so that results do not depend on where in memory
    a state lies.
    """

    tokens: tuple[int, ...]
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    prediction: "tuple[Asked, Result] | None" = None
    number: int = field(default_factory=count(1).__next__)
    midway: dict[Midway, dict[Component, Tensor]] = field(default_factory=dict)
    image: Image | None = None

    def clear(self) -> None:
        """Empties it, so that it can be computed again."""
        for part in (self.residual, self.keys, self.values, self.logits, self.midway):
            part.clear()
        self.prediction = None

    @property
    def bytes(self) -> int:
        """Memory this state holds."""
        tensors = [self.embedding, *self.residual, *self.keys, *self.values, *self.logits.values()]
        return sum(map(_bytes, tensors)) + self.midway_bytes + (0 if self.image is None else len(self.image.file))

    @property
    def midway_bytes(self) -> int:
        """The part of it that `midway` holds."""
        return sum(_bytes(tensor) for kept in list(self.midway.values()) for tensor in kept.values())


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """How the next-token distribution at `position` is read.

    `clean` is the unchanged run. Without targets, its most probable token is the target; `divergence` asks for
    KL(clean || run). It may still be empty when the reading is made, but must be computed before it is used.
    """

    position: int
    targets: tuple[Target, ...] = ()
    top_k: int = 0
    clean: State | None = None
    divergence: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A base, what is changed in it, and what is read.

    `receipts`: how many distances are reported. `choices`: how the token after its last position is chosen, once for
    each of its continuations.
    """

    base: State
    edits: Sequence[PlacedEdit] = ()
    reading: Reading | None = None
    captures: tuple[Capture, ...] = ()
    receipts: int = 0
    choices: tuple[Choice, ...] = ()
    detour: Detour | None = None


@dataclass(slots=True, eq=False)
class Result:
    """What was read of a run, on the CPU, in float32.

    `taken`: the token of each choice; None where the logits were not finite.
    """

    log_probabilities: Tensor | None = None
    logits: Tensor | None = None
    top_tokens: Tensor | None = None
    top_log_probabilities: Tensor | None = None
    kl_divergence: float | None = None
    captures: list[Tensor] = field(default_factory=list)
    edit_norms: Tensor | None = None
    taken: tuple[Taken | None, ...] = ()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
