"""The parts of an answer, as the methods yield them: numpy arrays, and where in the answer they belong.

`wire` encodes them, joins small ones into one message and cuts large ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .costs import Cost
from .plans import SweepAxes
from .prompts import Target

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A part of an answer. Those of a method, or of the changed runs, are in the file of the question."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a run predicts, by target, and its top tokens."""

    log_probabilities: Floats
    logits: Floats
    top_tokens: Integers
    top_log_probabilities: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Context(Answer):
    """The first part of every answer. `clean` is None in a dry run."""

    tokens: tuple[int, ...]
    targets: tuple[Target, ...]
    position: int
    clean: Prediction | None
    cost: Cost
    attention: str
    axes: SweepAxes | None = None


@dataclass(frozen=True, slots=True)
class Progress(Answer):
    """How many steps are done, of all. `runs`: whether a step is a run."""

    done: int
    total: int
    runs: bool = False
