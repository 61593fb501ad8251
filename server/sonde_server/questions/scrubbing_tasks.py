"""Which runs a hypothesis needs: those of the deepest nodes first, each one once however often it is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .answers import Integers
from .extents import Detoured, Extent, extent_of
from .graph import READ_BY_HEADS, precedes
from .hypotheses import Hypothesis, Node
from .places import Component, Place, Site, Sized
from .prompts import Prompt


class Leaf(NamedTuple):
    """The value of a node in an example's unchanged run."""

    node: int
    example: int


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """The run of a node with children: that of `example`, with the children's values in their places.

    Tasks are compared by identity, for comparing trees would take calls as deep as they are.

    values: by child, a leaf, or the task whose run has its value; none if all are the run's own.
    reference: of the prediction, which reference it is of, by its place; None: the run is for its node's value.
    """

    node: int
    example: int
    values: tuple[tuple[int, "Leaf | Task"], ...]
    reference: int | None = None

    def extent(self, hypothesis: Hypothesis, model: Sized, prompts: Sequence[Prompt], position: int) -> Extent:
        """What it computes. `prompts`: the examples; `position`: where predictions are read."""
        prompt = prompts[self.example]
        nodes = hypothesis.nodes
        edits = [place for child, _ in self.values if not nodes[child].direct for place in self._places(nodes[child])]
        captures = [] if self.reference is not None else self._places(nodes[self.node])
        read = position if self.reference is not None else None
        detoured = self.detoured(hypothesis, model, position)
        tokens, sight = len(prompt.tokens), prompt.sight
        return extent_of(edits, captures, read, tokens, model.layers, detoured=detoured, sight=sight)

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
        self._children = [hypothesis.children(number) for number in range(len(hypothesis.nodes))]
        # By what they are made of, children before parents.
        self._known: dict[tuple[int, int, tuple[tuple[int, Leaf | Task], ...]], Task] = {}
        # One of the prediction for each draw, and of the other nodes with children each one once.
        self.predictions: list[list[Task]] = [
            [self._prediction(drawn, reference) for drawn in runs.tolist()]
            for reference, runs in zip(references, draws, strict=True)
        ]

    def _prediction(self, drawn: list[list[int]], reference: int) -> Task:
        """The run of one draw. Nodes go from the last to the first, for trees may be deeper than calls may nest."""
        made: dict[int, Leaf | Task] = {}
        for number in range(len(drawn) - 1, 0, -1):
            own, other = drawn[number]
            if not self._children[number]:
                made[number] = Leaf(number, own)
                continue
            values = self._values(number, other, made)
            # A run in which nothing changes is the unchanged one.
            if not values:
                made[number] = Leaf(number, other)
                continue
            key = number, other, values
            if key not in self._known:
                self._known[key] = Task(*key)
            made[number] = self._known[key]
        return Task(0, drawn[0][1], self._values(0, drawn[0][1], made), reference)

    def _values(
        self, number: int, example: int, made: dict[int, "Leaf | Task"]
    ) -> tuple[tuple[int, "Leaf | Task"], ...]:
        """What is put into the run of a node; nothing if all are the run's own.

        One of the run's own beside others' is put there too: it holds its place against what they change below it.
        """
        values = tuple((child, made[child]) for child in self._children[number])
        own = all(isinstance(value, Leaf) and value.example == example for _, value in values)
        return () if own else values

    def waves(self) -> list[list[Task]]:
        """The runs for values, so that those which a run needs are in an earlier list."""
        levels: dict[Task, int] = {}
        waves: list[list[Task]] = []
        # In the order in which they were first drawn, so that batches do not depend on hashes.
        for task in self._known.values():
            below = [levels[value] for _, value in task.values if isinstance(value, Task)]
            levels[task] = 1 + max(below, default=-1)
            if levels[task] == len(waves):
                waves.append([])
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
