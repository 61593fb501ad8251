"""Which runs a hypothesis needs: those of the deepest nodes first, each one once however often it is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .answers import Integers
from .extents import Detoured, Extent, extent_of
from .graph import READ_BY_HEADS, precedes
from .hypotheses import Hypothesis, Node
from .places import Component, Place, Site, Sized


class Leaf(NamedTuple):
    """The value of a node in an example's unchanged run."""

    node: int
    example: int


@dataclass(frozen=True, slots=True)
class Task:
    """The run of a node with children: that of `example`, with the children's values in their places.

    values: by child, a leaf, or the task whose run has its value; none if all are the run's own.
    reference: of the prediction, which reference it is of, by its place; None: the run is for its node's value.
    """

    node: int
    example: int
    values: tuple[tuple[int, "Leaf | Task"], ...]
    reference: int | None = None

    def extent(self, hypothesis: Hypothesis, model: Sized, tokens: int, position: int) -> Extent:
        """What it computes. `position`: where predictions are read."""
        nodes = hypothesis.nodes
        edits = [place for child, _ in self.values if not nodes[child].direct for place in self._places(nodes[child])]
        captures = [] if self.reference is not None else self._places(nodes[self.node])
        read = position if self.reference is not None else None
        detoured = self.detoured(hypothesis, model, position)
        return extent_of(edits, captures, read, tokens, model.layers, detoured=detoured)

    def detoured(self, hypothesis: Hypothesis, model: Sized, position: int) -> Detoured:
        """The direct children, and what the node reads."""
        direct = [hypothesis.nodes[child] for child, _ in self.values if hypothesis.nodes[child].direct]
        senders = [place for node in direct for place in self._places(node)]
        if not senders:
            return Detoured()
        return Detoured(senders, [place for place, _ in self.receivers(hypothesis, model, position, senders)])

    def receivers(
        self, hypothesis: Hypothesis, model: Sized, position: int, senders: Sequence[Place]
    ) -> Iterator[tuple[Place, tuple[int, ...] | None]]:
        """What the node reads of the stream, with the units, where a sender comes before it."""
        site = hypothesis.nodes[self.node].site
        for component, layer, units, positions in _reads(
            site, hypothesis.nodes[self.node].positions[self.example] if site else (position,), model
        ):
            before = [one for one in senders if precedes((one.component, one.layer), (component, layer), model)]
            sent = {p for one in before for p in one.positions}
            there = tuple(sorted(sent if positions is None else sent & set(positions)))
            if there:
                yield Place(component, layer, there), units

    def _places(self, node: Node) -> list[Place]:
        assert node.site is not None
        return [Place(node.site.component, layer, node.positions[self.example]) for layer in node.site.layers]


def _reads(
    site: Site | None, positions: tuple[int, ...], model: Sized
) -> Iterator[tuple[Component, int, tuple[int, ...] | None, tuple[int, ...] | None]]:
    """What a place reads of the stream: component, layer, units and positions, None for all of them."""
    if site is None:
        yield Component.LOGITS, 0, None, positions
        return
    group = model.heads // model.key_value_heads
    for layer in site.layers:
        if site.component in READ_BY_HEADS:
            yield site.component, layer, site.units, positions
        elif site.component in (Component.HEAD_OUT, Component.ATTENTION_OUT):
            heads = site.units if site.component is Component.HEAD_OUT else None
            shared = None if heads is None else tuple(sorted({head // group for head in heads}))
            yield Component.QUERY, layer, heads, positions
            yield Component.KEY, layer, shared, None
            yield Component.VALUE, layer, shared, None
        else:
            yield Component.MLP_OUT, layer, None, positions


class Tasks:
    """The runs of some references, from their draws [references, samples, nodes, 2]."""

    def __init__(self, hypothesis: Hypothesis, draws: Integers, references: range, position: int, tokens: int) -> None:
        self._hypothesis = hypothesis
        self.position = position
        self.tokens = tokens
        self._known: dict[Task, Task] = {}
        children = [hypothesis.children(number) for number in range(len(hypothesis.nodes))]
        self._children = children
        # One of the prediction for each draw, and of the other nodes with children each one once.
        self.predictions: list[list[Task]] = [
            [self._task(0, drawn, reference) for drawn in runs]
            for reference, runs in zip(references, draws, strict=True)
        ]

    def _task(self, number: int, drawn: Integers, reference: int | None = None) -> Task:
        example = int(drawn[number, 1])
        values: list[tuple[int, Leaf | Task]] = []
        for child in self._children[number]:
            below = self._task(child, drawn) if self._children[child] else None
            if below is not None and below.values:
                values.append((child, below))
            else:
                # A run in which nothing changes is the unchanged one.
                values.append((child, Leaf(child, int(drawn[child, 0 if below is None else 1]))))
        if all(isinstance(value, Leaf) and value.example == example for _, value in values):
            values = []
        task = Task(number, example, tuple(values), reference)
        return task if reference is not None else self._known.setdefault(task, task)

    def waves(self) -> list[list[Task]]:
        """The runs for values, so that those which a run needs are in an earlier list."""
        levels: dict[Task, int] = {}

        def level(task: Task) -> int:
            if task not in levels:
                below = [level(value) for _, value in task.values if isinstance(value, Task)]
                levels[task] = 1 + max(below, default=-1)
            return levels[task]

        needed = {value for runs in self.predictions for one in runs for _, value in one.values}
        for task in needed:
            if isinstance(task, Task):
                level(task)
        waves: list[list[Task]] = [[] for _ in range(1 + max(levels.values(), default=-1))]
        # In the order in which they were first drawn, so that batches do not depend on hashes.
        for task in self._known:
            if task in levels:
                waves[levels[task]].append(task)
        return waves

    def all(self) -> Iterator[Task]:
        """Every run."""
        for wave in self.waves():
            yield from wave
        for runs in self.predictions:
            yield from runs

    def read(self) -> Iterator[Leaf]:
        """What is read of unchanged runs: leaves, and of runs with direct children the values that these replace."""
        for task in self.all():
            for child, value in task.values:
                if isinstance(value, Leaf):
                    yield value
                if self._hypothesis.nodes[child].direct:
                    yield Leaf(child, task.example)
