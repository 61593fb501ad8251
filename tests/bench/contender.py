"""What a contender is: something that answers workloads with the array that is due."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tests.bench.case_workloads import CaseWorkload, Continuations, Facts, Pairs, Sentences
from tests.bench.circuit_workloads import CircuitWorkload, Curve, Paths, Scrubbing
from tests.bench.workloads import Answer, Callers, Grid, Heads, Neurons, OneNeuron, Workload


class Contender(Protocol):
    """One way to compute workloads.

    What a contender cannot do stands in `omitted`, by the workload's name, with the reason.
    """

    @property
    def name(self) -> str:
        """As it stands in the table."""

    @property
    def omitted(self) -> Mapping[str, str]:
        """Reasons by workload."""


class PromptContender(Contender, Protocol):
    """Asked about one prompt. W1 gives [cells], W2 [neurons], W3 [heads], W4 [2, top] and W5 [callers, runs]."""

    def grid(self, workload: Grid) -> Answer:
        """W1."""

    def neurons(self, workload: Neurons) -> Answer:
        """W2."""

    def heads(self, workload: Heads) -> Answer:
        """W3."""

    def one_neuron(self, workload: OneNeuron) -> Answer:
        """W4."""

    def callers(self, workload: Callers) -> Answer:
        """W5."""


class CaseContender(Contender, Protocol):
    """Asked about datasets; the workloads say what each gives."""

    def pairs(self, workload: Pairs) -> Answer:
        """W6."""

    def sentences(self, workload: Sentences) -> Answer:
        """W7."""

    def facts(self, workload: Facts) -> Answer:
        """W8."""

    def continuations(self, workload: Continuations) -> Answer:
        """W9."""


class CircuitContender(Contender, Protocol):
    """Asked about circuits; the workloads say what each gives."""

    def paths(self, workload: Paths) -> Answer:
        """W10."""

    def curve(self, workload: Curve) -> Answer:
        """W11."""

    def scrubbing(self, workload: Scrubbing) -> Answer:
        """W12."""


PEERS = ("library", "hand", "script")
"""Kinds of those that Sonde is compared with."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender in the field, and how it is measured."""

    contender: Contender
    kind: str
    """`sonde`, `library`, `hand` (written by hand), `script` (as published) or `serial`: whom the ratios compare."""
    loop: bool = False
    """One forward pass a cell: its time is measured on a part of the cells and scaled."""


def ask(contender: Contender, workload: Workload | CaseWorkload | CircuitWorkload) -> Answer:
    """The contender's answer."""
    answer: Callable[[Any], Answer] = getattr(contender, _METHODS[type(workload)])
    return answer(workload)


_METHODS: Mapping[type, str] = {
    Grid: "grid",
    Neurons: "neurons",
    Heads: "heads",
    OneNeuron: "one_neuron",
    Callers: "callers",
    Pairs: "pairs",
    Sentences: "sentences",
    Facts: "facts",
    Continuations: "continuations",
    Paths: "paths",
    Curve: "curve",
    Scrubbing: "scrubbing",
}
