"""The parts of an answer, as the methods yield them: numpy arrays, and where in the answer they belong.

`wire` encodes them, joins small ones into one message and cuts large ones.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .costs import Cost
from .images import Image
from .plans import SweepAxes
from .prompts import Target

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A part of an answer. Those of a method, or of the changed runs, are in the file of the question."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a run predicts, by target, and its top tokens. `probabilities`: of a reduction alone."""

    log_probabilities: Floats
    logits: Floats
    top_tokens: Integers
    top_log_probabilities: Floats
    probabilities: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Context(Answer):
    """The first part of every answer. `clean` is None in a dry run. `spans`: the named positions of the prompt.

    `image`: its image.
    """

    tokens: tuple[int, ...]
    targets: tuple[Target, ...]
    position: int
    clean: Prediction | None
    cost: Cost
    attention: str
    axes: SweepAxes | None = None
    spans: tuple[tuple[str, tuple[int, ...]], ...] = ()
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Progress(Answer):
    """How many steps are done, of all. `runs`: whether a step is a run. Of cases: how many are answered in full."""

    done: int
    total: int
    runs: bool = False
    cases_done: int = 0
    cases: int = 0


class Statistic(enum.IntEnum):
    """A statistic over cases, numbered as in the contract."""

    MEAN = 1
    DEVIATION = 2


@dataclass(frozen=True, slots=True, eq=False)
class CaseAnswer(Answer):
    """A part of the answer to one case, by its index in the request."""

    case: int
    part: Answer


@dataclass(frozen=True, slots=True, eq=False)
class ReducedAnswer(Answer):
    """A part of an answer whose numbers are statistics over the cases [first_case, first_case + cases) of a group.

    `count`: how many of these cases belong to the group.
    """

    group: str
    statistic: Statistic
    first_case: int
    cases: int
    count: int
    part: Answer
