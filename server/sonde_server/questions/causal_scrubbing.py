"""Causal scrubbing: does a prediction survive when everything comes from other examples but what a hypothesis names?

Chan, Garriga-Alonso, Goldowsky-Dill, Greenblatt, Nitishinskaya, Radhakrishnan, Shlegeris, Thomas, "Causal Scrubbing"
(2022, alignmentforum.org/posts/JvZhhzycHu2Yd57RN).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .answers import Answer, Integers
from .costs import FLOAT, Cost, state_bytes
from .extents import Extent, Restarts, rereading, token_layers
from .hypotheses import Hypothesis
from .interventions import Readings, Readout
from .places import Component, Place, Site, Sized
from .prompts import Asked, Prompt, content_of
from .scrubbing_tasks import Task, Tasks

# References are answered together as long as they have no more draws than this.
DRAWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class CausalScrubbing:
    """The question of every reference: its prediction in runs in which examples take the places of others.

    prompts: the examples. readouts: what is read for each reference. draws: [references, samples, nodes, 2].
    """

    prompts: tuple[Prompt, ...]
    hypothesis: Hypothesis
    references: tuple[int, ...]
    readouts: tuple[Readout, ...]
    draws: Integers
    dry_run: bool = False

    @property
    def samples(self) -> int:
        """How many runs each reference has."""
        return int(self.draws.shape[1])

    @property
    def tokens(self) -> int:
        """The length of every example."""
        return len(self.prompts[0].tokens)

    @property
    def position(self) -> int:
        """Where every prediction is read."""
        return self.readouts[0].position

    def asked(self, number: int) -> Asked:
        """What is asked of the unchanged run of a reference, by its place among the references."""
        readout = self.readouts[number]
        return Asked(self.prompts[self.references[number]], readout.targets, readout.position, readout.top_k)

    def chunks(self) -> Iterator[range]:
        """The references that are answered together, by their places among all."""
        step = max(1, DRAWS_AT_ONCE // max(1, self.samples))
        for start in range(0, len(self.references), step):
            yield range(start, min(start + step, len(self.references)))

    def tasks(self, chunk: range) -> Tasks:
        """What is run for some references."""
        return Tasks(self.hypothesis, self.draws[chunk.start : chunk.stop], chunk, self.position, self.tokens)

    @cached_property
    def read_of(self) -> dict[int, dict[tuple[Component, int], tuple[int, ...]]]:
        """By example: what is read of its unchanged run, as positions by component and layer."""
        wanted: dict[int, dict[tuple[Component, int], set[int]]] = {}
        for chunk in self.chunks():
            for number, example in self.tasks(chunk).read():
                node = self.hypothesis.nodes[number]
                assert node.site is not None
                places = wanted.setdefault(example, {})
                for layer in node.site.layers:
                    places.setdefault((node.site.component, layer), set()).update(node.positions[example])
        return {
            example: {place: tuple(sorted(positions)) for place, positions in places.items()}
            for example, places in wanted.items()
        }

    # ------------------------------------------------------------ what it costs

    @property
    def total_tokens(self) -> int:
        """The tokens of all examples."""
        return len(self.prompts) * self.tokens

    def runs(self, _model: Sized) -> int:
        """The scrubbed runs."""
        return len(self.references) * self.samples

    def most_runs(self, _model: Sized) -> int:
        """What the limit of runs is for: one reference, as one case."""
        return self.samples

    def answer_bytes(self, _model: Sized) -> int:
        """The draws, and what is read of each scrubbed run and of every example, with each reference's targets."""
        columns = max(2 * max(1, len(one.targets)) + one.kl_divergence + 2 * one.top_k for one in self.readouts)
        each = self.samples * (columns + 2 * len(self.hypothesis.nodes)) + len(self.prompts) * columns
        return FLOAT * len(self.references) * each

    def restarts(self, model: Sized) -> Restarts:
        """What the scrubbed runs compute, and what is read again of unchanged ones."""
        found: dict[Extent, int] = {}
        for chunk in self.chunks():
            for task in self.tasks(chunk).all():
                extent = self.extent(task, model)
                found[extent] = found.get(extent, 0) + 1
        for example, places in self.read_of.items():
            again = [Place(component, layer, positions) for (component, layer), positions in places.items()]
            extent = rereading(again, self.tokens, model.layers, self.prompts[example].sight)
            found[extent] = found.get(extent, 0) + 1
        return found

    def extent(self, task: Task, model: Sized) -> Extent:
        """What one run computes."""
        return task.extent(self.hypothesis, model, self.prompts, self.position)

    def cost(self, model: Sized, restarts: Restarts | None = None) -> Cost:
        """Exact before anything runs, for examples that are new: which are drawn is known."""
        full = self.tokens * model.layers
        bases = len({content_of(prompt) for prompt in self.prompts}) * full
        work = bases + token_layers(self.restarts(model) if restarts is None else restarts)
        inner = len({node.parent for node in self.hypothesis.nodes[1:]}) or 1
        total = bases + self.runs(model) * inner * full
        answer = self.answer_bytes(model)
        return Cost(self.runs(model), work, total, answer, self.total_tokens, len(self.references))

    def held_bytes(self, model: Sized) -> int:
        """The states of all examples, what is read of them, and the values of the runs of some references."""
        held = len(self.prompts) * state_bytes(self.tokens, model) + sum(prompt.image_bytes for prompt in self.prompts)
        sizes = [
            model.numbers(Site(component, (layer,), None, positions), self.tokens)
            for places in self.read_of.values()
            for (component, layer), positions in places.items()
        ]
        held += FLOAT * sum(sizes)
        made = [model.numbers(node.site, self.tokens) for node in self.hypothesis.nodes if node.site is not None]
        return held + FLOAT * min(self.runs(model), DRAWS_AT_ONCE + self.samples) * sum(made)


@dataclass(frozen=True, slots=True, eq=False)
class ExampleReadings(Answer):
    """What is read of the unchanged run of every example, numbered as the cases."""

    readings: Readings
