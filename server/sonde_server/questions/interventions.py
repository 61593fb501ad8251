"""What happens to a prediction when parts are changed?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from .activations import Encoding, Pooling, numbers_read
from .answers import Answer, Floats, Integers
from .circuits import Circuits, writers
from .circuits import detoured as detoured_circuit
from .costs import DOUBLE, FLOAT, HELD_RUNS, Cost, cache_bytes, detour_bytes, item_bytes, state_bytes
from .edits import Edit, Noise, Patch
from .extents import Extent, Restarts, extent_of, first_block, rereading, token_layers
from .generation import Generation
from .graph import Graph
from .paths import Route, detoured, route_of
from .places import END, PAIRWISE, Component, Place, Site, Sized
from .plans import Plan, Sweep, SweepAxes
from .prompts import Asked, Prompt, Target, content_of, first_difference


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read in every run."""

    targets: tuple[Target, ...]
    position: int
    top_k: int = 0
    kl_divergence: bool = False
    activations: tuple[Site, ...] = ()
    generation: Generation | None = None
    encoding: Encoding = Encoding.FLOAT32
    pooling: Pooling = Pooling.NONE


@dataclass(frozen=True, slots=True)
class InterveneQuestion:
    """What happens to the prediction under each of these interventions?"""

    prompt: Prompt
    sources: tuple[Prompt, ...]
    plan: Plan
    readout: Readout
    dry_run: bool = False

    @property
    def asked(self) -> Asked:
        """What is asked of the unchanged run."""
        return Asked(self.prompt, self.readout.targets, self.readout.position, self.readout.top_k)

    @property
    def axes(self) -> SweepAxes | None:
        """The entries of a sweep's axes; a list has none."""
        return self.plan.axes

    @property
    def pairs(self) -> bool:
        """Whether scores or patterns are read or changed."""
        sites = (*(edit.site for edit in self.plan.edits), *self.readout.activations)
        return any(site.component in PAIRWISE for site in sites)

    def read_places(self) -> list[Place]:
        """What is read in every run."""
        return [place for site in self.readout.activations for place in site.places(self.asked.tokens)]

    def sourced(self, layers: int) -> dict[tuple[int, Component, int], tuple[int, ...]]:
        """By source, component and layer: the positions whose values the patches take."""
        taken: dict[tuple[int, Component, int], set[int]] = defaultdict(set)
        if not self.sources or isinstance(self.plan, Circuits):
            return {}
        for edits in self.plan.one_unit().runs(layers):
            for edit in edits:
                if isinstance(edit.operation, Patch):
                    for number, source in enumerate(edit.operation.sources):
                        positions = self.source_positions(edit.site, edit.operation, number)
                        for layer in edit.site.layers:
                            taken[source, edit.site.component, edit.operation.layer_for(layer)].update(positions)
        return {place: tuple(sorted(positions)) for place, positions in taken.items()}

    @property
    def _read_above(self) -> frozenset[int]:
        """The positions where the final norm or the logits are read."""
        places = [place for place in self.read_places() if place.component in END]
        return frozenset({self.readout.position, *(position for place in places for position in place.positions)})

    def route(self, edits: tuple[Edit, ...], model: Sized) -> Route:
        """The paths of one run's edits."""
        return route_of(edits, model, self.asked.tokens, self._read_above, self.prompt.sight)

    def circuit_extents(self, plan: Circuits, model: Sized) -> Iterator[Extent]:
        """What each run of circuits computes."""
        positions, read = self.differing(plan), (self.readout.position,)
        for missing in plan.missing(model):
            there = detoured_circuit(missing, model, positions, read)
            yield extent_of(
                (),
                self.read_places(),
                self.readout.position,
                self.asked.tokens,
                model.layers,
                detoured=there,
                sight=self.prompt.sight,
            )

    def differing(self, plan: Circuits) -> tuple[int, ...]:
        """The positions where circuits may differ from the unchanged run, up to the last that is read."""
        places = [position for place in self.read_places() for position in place.positions]
        end = self.prompt.sight.horizon(max([self.readout.position, *places])) + 1
        first = 0
        if len(plan.sources) == 1:
            first = first_difference(self.prompt, self.sources[plan.sources[0]])
        return tuple(range(first, end))

    def extent(self, edits: tuple[Edit, ...], route: Route, layers: int) -> Extent:
        """What one run computes."""
        tokens = self.asked.tokens
        places = [place for edit in edits if edit.path is None for place in edit.site.places(tokens)]
        continued = self.readout.generation is not None
        return extent_of(
            places,
            self.read_places(),
            self.readout.position,
            tokens,
            layers,
            continued=continued,
            detoured=detoured(route),
            sight=self.prompt.sight,
        )

    def left_alone(self, model: Sized) -> dict[tuple[Component, int], tuple[int, ...]]:
        """By component and layer: the positions whose values in the unchanged run the paths need.

        These are of senders below the first block that a run computes, and what MLPs there read which changes go
        through.
        """
        layers = model.layers
        if isinstance(self.plan, Circuits):
            places = writers(model, self.differing(self.plan))
            return {(place.component, place.layer): place.positions for place in places}
        needed: dict[tuple[Component, int], set[int]] = defaultdict(set)
        stream = Component.RESIDUAL_PRE if model.parallel else Component.RESIDUAL_MID
        for edits, _ in self._kinds(layers):
            route = self.route(edits, model)
            start = self.extent(edits, route, layers).start
            for leg in route.senders:
                if first_block(leg, layers) < start:
                    needed[leg.component, leg.layer].update(leg.positions)
            for leg in route.through:
                if first_block(leg, layers) < start:
                    needed[stream, leg.layer].update(leg.positions)
        return {place: tuple(sorted(positions)) for place, positions in needed.items()}

    def source_positions(self, site: Site, patch: Patch, number: int) -> tuple[int, ...]:
        """The positions that pair with those of a patch's site, in the source that the patch names at `number`."""
        return site.positions_within(self.asked.tokens) if patch.positions is None else patch.positions[number]

    # ------------------------------------------------------------ what it costs

    @property
    def others(self) -> tuple[Prompt, ...]:
        """The prompts beside its own."""
        return self.sources

    @property
    def total_tokens(self) -> int:
        """The tokens of its prompts and sources in all."""
        return self.asked.tokens + sum(len(source.tokens) for source in self.others)

    def runs(self, _model: Sized) -> int:
        """How many runs it asks for, as `Cost.runs` counts them: the changed ones."""
        return self.plan.count

    def most_runs(self, model: Sized) -> int:
        """What the limit of runs is for."""
        return self.runs(model)

    def answer_bytes(self, model: Sized) -> int:
        """What is read of every changed run; activations and generated tokens of the unchanged one as well."""
        readout, runs = self.readout, self.plan.count
        columns = 2 * self.asked.columns + readout.kl_divergence + 2 * readout.top_k + self.plan.edits_per_run
        read = numbers_read(readout.activations, readout.pooling, self.asked.tokens, model)
        size = FLOAT * runs * columns + (runs + 1) * readout.encoding.bytes * read
        if (generation := readout.generation) is not None:
            size += generation.continued(runs) * generation.answer_bytes(model, readout.encoding)
        return size

    def restarts(self, model: Sized) -> Restarts:
        """The changed runs, what is read again of unchanged ones, and the positions that are generated."""
        layers, tokens, generation = model.layers, self.asked.tokens, self.readout.generation
        found = self._changed(model)
        found.update(extent for extent, _ in self._read_again(model))
        if generation is not None and generation.max_new_tokens > 1:
            # Each of these positions attends to the keys of the prompt. A text that meets an end token has fewer.
            position = Extent.whole(layers, tokens + 1, tokens)
            found[position] += generation.continued(self.plan.count) * generation.steps
        return found

    def cost(self, model: Sized, restarts: Restarts | None = None) -> Cost:
        """Exact before anything runs, for prompts that are new and texts that reach their full length.

        `restarts`, if they are known already, need not be counted again.
        """
        tokens, layers, runs = self.asked.tokens, model.layers, self.plan.count
        # Circuits run the sources that they name, patches all.
        named = self.plan.sources if isinstance(self.plan, Circuits) else range(len(self.sources))
        others = {content_of(self.sources[source]) for source in named} - {content_of(self.prompt)}
        unchanged = (tokens + sum(len(other) for other, _ in others)) * layers
        work = unchanged + token_layers(self.restarts(model) if restarts is None else restarts)
        work += sum(count * self.route(edits, model).passed for edits, count in self._kinds(layers))
        total = unchanged + runs * tokens * layers
        total += sum(length * layers for extent, length in self._read_again(model) if extent.token_layers)
        if (generation := self.readout.generation) is not None:
            lengths = sum(tokens + step for step in range(1, generation.max_new_tokens))
            total += generation.continued(runs) * generation.samples * lengths * layers
        return Cost(runs, work, total, self.answer_bytes(model), self.total_tokens)

    def _kinds(self, layers: int) -> Iterable[tuple[tuple[Edit, ...], int]]:
        """The edits of one run of each kind, and how many runs there are of it. Their units make no difference."""
        if isinstance(self.plan, Circuits):
            return ()
        one_unit = self.plan.one_unit()
        units = self.plan.count // one_unit.count
        found: dict[object, tuple[tuple[Edit, ...], int]] = {}
        for edits in one_unit.runs(layers):
            # Whether values are given matters to what a path goes through.
            kind = tuple(
                (site.component, site.layers, site.positions, site.from_position, edit.path, type(edit.operation))
                for edit in edits
                for site in (edit.site,)
            )
            one, count = found.get(kind, (edits, 0))
            found[kind] = one, count + units
        return found.values()

    def _changed(self, model: Sized) -> "Counter[Extent]":
        """What the changed runs compute, and how many of them."""
        if isinstance(self.plan, Circuits):
            return Counter(self.circuit_extents(self.plan, model))
        found: Counter[Extent] = Counter()
        for edits, count in self._kinds(model.layers):
            found[self.extent(edits, self.route(edits, model), model.layers)] += count
        return found

    def _read_again(self, model: Sized) -> list[tuple[Extent, int]]:
        """What is read again of each unchanged run, of sources for the patches; and the length of its prompt."""
        read: dict[int, list[Place]] = defaultdict(list)
        for (source, component, layer), positions in self.sourced(model.layers).items():
            read[source].append(Place(component, layer, positions))
        prompts = [(self.prompt, self.read_places())]
        own = [Place(*place, positions) for place, positions in self._beside(model).items()]
        # Of circuits, each source is read like the prompt.
        again = 1 + len(self.plan.sources) if isinstance(self.plan, Circuits) else 1
        prompts += [(self.prompt, own)] * again
        prompts += [(self.sources[source], places) for source, places in read.items()]
        return [
            (rereading(places, len(prompt.tokens), model.layers, prompt.sight), len(prompt.tokens))
            for prompt, places in prompts
        ]

    def held_bytes(self, model: Sized) -> int:
        """The states of all prompts, the continued runs, the changed values of the runs laid out, and the sources'."""
        tokens = self.asked.tokens
        held = state_bytes(tokens, model) + self.prompt.image_bytes
        others = {content_of(source): source.image_bytes for source in self.sources}
        held += sum(state_bytes(len(source), model) + images for (source, _), images in others.items())
        if (generation := self.readout.generation) is not None:
            item = item_bytes(model.data_type)
            prompt, new = (cache_bytes(count, model, item) for count in (tokens, generation.max_new_tokens))
            held += generation.held_bytes(generation.continued(self.plan.count), prompt, new, model)
        for (source, component, _), positions in self.sourced(model.layers).items():
            length = len(self.sources[source].tokens)
            held += FLOAT * prod(model.selected_shape(component, None, len(positions), length))
        beside = 0
        for (component, _), positions in self._beside(model).items():
            beside += FLOAT * prod(model.selected_shape(component, None, len(positions), tokens))
        if isinstance(self.plan, Circuits):
            # The values of the prompt and of each source, their mean, and what senders write, which is kept.
            columns = detour_bytes(Graph(model).senders, tokens, model, FLOAT)
            return held + (2 + len(self.plan.sources)) * beside + columns
        return held + beside + self._changed_bytes(model)

    def _beside(self, model: Sized) -> dict[tuple[Component, int], tuple[int, ...]]:
        """What paths and circuits read of the unchanged run, as `left_alone` says."""
        paths = isinstance(self.plan, Circuits) or any(edit.path is not None for edit in self.plan.edits)
        return self.left_alone(model) if paths else {}

    def _changed_bytes(self, model: Sized) -> int:
        """Noise and patched values of the runs that are laid out at a time, at most."""

        def made(edits: tuple[Edit, ...]) -> int:
            sites = (edit.site for edit in edits if isinstance(edit.operation, Noise | Patch))
            return DOUBLE * sum(model.numbers(site, self.asked.tokens) for site in sites)

        if isinstance(self.plan, Circuits):
            return 0
        if isinstance(self.plan, Sweep):
            return min(self.plan.count, HELD_RUNS) * made(self.plan.widest(model.layers))
        each = [made(intervention.edits) for intervention in self.plan.interventions]
        return sum(sorted(each, reverse=True)[:HELD_RUNS])


@dataclass(frozen=True, slots=True, eq=False)
class Readings(Answer):
    """Runs [offset, offset + n) of the plan: [n, targets], [n], [n, top_k] and [n, edits].

    `probabilities` [n, targets]: of a reduction alone. `draws` [n, nodes, 2]: of causal scrubbing.
    """

    offset: int
    log_probabilities: Floats
    logits: Floats
    kl_divergences: Floats | None
    top_tokens: Integers
    top_log_probabilities: Floats
    edit_norms: Floats
    probabilities: Floats | None = None
    draws: Integers | None = None
