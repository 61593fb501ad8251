"""What the methods yield while they work: parts of an answer, in numpy, each saying where it belongs.

`wire` encodes them, joins small ones into one message and cuts large ones.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .costs import Cost
from .places import Component, Site
from .plans import SweepAxes
from .prompts import Target

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a run predicts, by target, and its top tokens."""

    log_probabilities: Floats
    logits: Floats
    top_tokens: Integers
    top_log_probabilities: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Comes first. `clean` is None in a dry run."""

    tokens: tuple[int, ...]
    targets: tuple[Target, ...]
    position: int
    clean: Prediction | None
    cost: Cost
    attention: str
    axes: SweepAxes | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Runs done so far, of all."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Runs [offset, offset + n) of the plan: [n, targets], [n], [n, top_k] and [n, edits]."""

    offset: int
    log_probabilities: Floats
    logits: Floats
    kl_divergences: Floats | None
    top_tokens: Integers
    top_log_probabilities: Floats
    edit_norms: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """One whole activation of one run (-1: the unchanged one), at the site of this index and one layer."""

    run: int
    site: int
    layer: int
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class LayerReadings:
    """The target read at every depth; gradient norms are [depths, positions, targets], or None."""

    depths: tuple[int, ...]
    log_probabilities: Floats
    logits: Floats
    ranks: Integers
    kl_divergences: Floats
    top_tokens: Integers
    top_log_probabilities: Floats
    gradient_norms: Floats | None
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Corruption:
    """The corrupted runs with nothing restored, by target."""

    probabilities: Floats
    deviations: Floats
    logits: Floats
    positions: tuple[int, ...]
    noise_deviation: float
    sample_probabilities: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class RestorationGrid:
    """A part of one component's grid: [positions, layers, targets], samples last where asked for."""

    component: Component
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    probabilities: Floats
    deviations: Floats
    logits: Floats
    sample_probabilities: Floats | None


class FinishReason(enum.IntEnum):
    """Why a continuation ended, numbered as in the contract."""

    LENGTH = 1
    END_TOKEN = 2


@dataclass(frozen=True, slots=True)
class Generated:
    """One step of several runs (-1: the unchanged one): each one's token at `offset`, and why it ends with it."""

    offset: int
    runs: tuple[int, ...]
    tokens: tuple[int, ...]
    reasons: tuple[FinishReason | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Attributions:
    """A part of one component's estimates: [layers, positions, targets], units before targets where it has any."""

    component: Component
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    estimates: Floats


@dataclass(frozen=True, slots=True, eq=False)
class EdgeAttributions:
    """Edges from `offset` on in their order: component, layer and head of both ends [n, 3], estimates [n, targets]."""

    offset: int
    senders: Integers
    receivers: Integers
    estimates: Floats


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedEffect:
    """One place's estimate, and what patching it did, by target."""

    site: Site
    estimated: Floats
    measured: Floats


Answer = (
    Context
    | Progress
    | Readings
    | Activation
    | Generated
    | LayerReadings
    | Corruption
    | RestorationGrid
    | Attributions
    | EdgeAttributions
    | VerifiedEffect
)
