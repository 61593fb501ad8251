"""What is asked about circuits. Every contender gets the same cases, as token ids, and gives the same array.

W10  the direct path of each head to the logits, patched from each pair's own source: mean logit difference
W11  circuits of ten sizes, whose other edges carry each pair's own source: mean logit difference
W12  causal scrubbing with a hypothesis of nine nodes: each draw's logit difference
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from sonde.v1 import inspection_pb2 as pb

from tests.bench.case_workloads import Pair, Pairs, Subject, fewer
from tests.bench.datasets import INDIRECT_OBJECTS, NAMES, OBJECTS, PLACES, pairs
from tests.support.oracle import Site
from tests.support.scrubbing_oracle import Node, draw

SAMPLES = 4
SHARES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
"""Of all edges, how many each circuit keeps."""
Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Paths(Pairs):
    """W10: mean logit difference by head, [layers, heads]."""


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Edges in an order: [edges, 3] each, of Component, layer and head."""

    senders: Integers
    receivers: Integers


@dataclass(frozen=True, slots=True)
class Curve:
    """W11: mean logit difference by size, [sizes]."""

    cases: tuple[Pair, ...]
    edges: Edges
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def share(self, count: int) -> "Curve":
        """The same with `count` of its pairs."""
        return replace(self, cases=fewer(self.cases, count))


@dataclass(frozen=True, slots=True, eq=False)
class Scrubbing:
    """W12: each draw's logit difference by the reference's targets, [references, samples]."""

    cases: tuple[Pair, ...]
    """The examples; their sources are not used."""
    nodes: tuple[Node, ...]
    draws: Integers
    """[references, samples, nodes, 2]."""
    references: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.references)

    def share(self, count: int) -> "Scrubbing":
        """The same with `count` of its references."""
        chosen = fewer(tuple(range(len(self.references))), count)
        return replace(
            self, references=tuple(self.references[one] for one in chosen), draws=self.draws[np.array(chosen)]
        )


CircuitWorkload: TypeAlias = Paths | Curve | Scrubbing
CIRCUIT_NAMES = ("W10", "W11", "W12")
CIRCUIT_COUNTS = {"W10": 20, "W11": 10, "W12": 24}
QUICK_CIRCUIT_COUNTS = {"W10": 4, "W11": 4, "W12": 24}


def make(name: str, of: Subject, count: int, number: int) -> CircuitWorkload:
    """The workload of this name, with so many cases, drawn from a number."""
    match name:
        case "W10":
            return Paths(_pairs(of, count, number), tuple(range(of.layers)), of.heads)
        case "W11":
            edges = graph(of.layers, of.heads, of.key_value_heads)
            order = np.random.RandomState(60_000 + number).permutation(len(edges.senders))
            sizes = tuple(round(share * len(order)) for share in SHARES)
            return Curve(_pairs(of, count, number), Edges(edges.senders[order], edges.receivers[order]), sizes)
        case "W12":
            return scrubbing(_alike(of, count, number), hypothesis(of.layers, of.heads, count), number)
    raise ValueError(f"{name!r} is none of {', '.join(CIRCUIT_NAMES)}")


def scrubbing(examples: Sequence[Pair], nodes: Sequence[Node], number: int) -> Scrubbing:
    """All examples as references, with SAMPLES draws of each."""
    draws = [draw(nodes, len(examples), one, SAMPLES, 1000 * number + one) for one in range(len(examples))]
    return Scrubbing(tuple(examples), tuple(nodes), np.stack(draws), tuple(range(len(examples))))


def graph(layers: int, heads: int, key_value_heads: int) -> Edges:
    """All edges of a model whose MLPs read what the heads of their own block write."""
    senders, receivers = [], []
    below = [(int(pb.COMPONENT_TOKEN_EMBEDDING), 0, 0)]
    units = {pb.COMPONENT_QUERY: heads, pb.COMPONENT_KEY: key_value_heads, pb.COMPONENT_VALUE: key_value_heads}

    def read(component: int, layer: int, head: int) -> None:
        senders.extend(below)
        receivers.extend([(component, layer, head)] * len(below))

    for layer in range(layers):
        for component, count in units.items():
            for head in range(count):
                read(component, layer, head)
        below += [(int(pb.COMPONENT_HEAD_OUT), layer, head) for head in range(heads)]
        read(pb.COMPONENT_MLP_OUT, layer, 0)
        below.append((int(pb.COMPONENT_MLP_OUT), layer, 0))
    read(pb.COMPONENT_LOGITS, 0, 0)
    return Edges(np.array(senders), np.array(receivers))


def hypothesis(layers: int, heads: int, examples: int) -> list[Node]:
    """Nine nodes, four deep. An example's answer is its number modulo 4, and its subject its number modulo 3."""
    answers = tuple(example % 4 for example in range(examples))
    subjects = tuple(example % 3 for example in range(examples))
    high, middle, low = layers - 1, layers // 2, layers // 4
    last = (-1,)
    return [
        Node(),
        Node(0, Site("HEAD_OUT", (high,), (0,), last), answers),
        Node(1, Site("QUERY", (high,), (0,), last), subjects, answers),
        Node(2, Site("HEAD_OUT", (middle,), (1,), last), subjects, direct=True),
        Node(3, Site("MLP_OUT", (low,)), subjects),
        Node(0, Site("HEAD_OUT", (high,), (heads - 1,), last), answers),
        Node(5, Site("MLP_OUT", (middle,)), answers, subjects),
        Node(6, Site("HEAD_OUT", (low,), (heads - 1,)), subjects),
        Node(0, Site("MLP_OUT", (layers - 1,), (), last), answers, direct=True),
    ]


def _pairs(of: Subject, count: int, number: int) -> tuple[Pair, ...]:
    """Of names that are one token each, so that a prompt and its source have as many."""
    found: list[Pair] = []
    for one in pairs(8 * count, number):
        if all(len(of.ids(f" {name}")) == 1 for name in (one.indirect_object, one.subject)):
            answer, wrong = of.first(one.indirect_object), of.first(one.subject)
            found.append(Pair(of.ids(one.prompt), of.ids(one.source), answer, wrong))
    assert len(found) >= count
    return tuple(found[:count])


def _alike(of: Subject, count: int, number: int) -> list[Pair]:
    """Examples of one template, with words of one token each, so that all have as many tokens."""
    drawn = np.random.RandomState(70_000 + number)
    names, places, things = ([w for w in words if len(of.ids(f" {w}")) == 1] for words in (NAMES, PLACES, OBJECTS))
    found = []
    for _ in range(count):
        first, second = (names[int(index)] for index in drawn.choice(len(names), 2, replace=False))
        place, thing = places[drawn.randint(len(places))], things[drawn.randint(len(things))]
        subject, other = (first, second) if drawn.randint(2) else (second, first)
        text = INDIRECT_OBJECTS[0].format(a=first, b=second, subject=subject, place=place, object=thing)
        found.append(Pair(of.ids(text), (), of.first(other), of.first(subject)))
    assert len({len(one.tokens) for one in found}) == 1
    return found
