"""What of a case's answer has statistics over cases: columns of numbers by row, and how they become a part again."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ...questions.activations import Activation, Activations, Encoding, LargestActivations, Pooling
from ...questions.answers import Answer, Context, Floats, Integers, Prediction, Statistic
from ...questions.attribution_patching import AttributionPatching, Attributions, EdgeAttributions
from ...questions.causal_tracing import CausalTracing, Corruption, RestorationGrid
from ...questions.interventions import InterveneQuestion, Readings
from ...questions.places import Site
from ...questions.token_probability import LayerReadings, TokenProbability
from ...questions.traces import TraceQuestion
from .moments import Rows
from .sums import Columns, Sum

M = TypeVar("M", Activations, AttributionPatching, CausalTracing, TokenProbability)
SINGLE: Rows = np.zeros(1, np.intp)


Restore = Callable[[Sum, Statistic], Iterator[Answer]]


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """The numbers of one part of a case.

    `key` is the same for the part of every case that belongs together, and `rows` their number of rows. `columns`: by
    name, values [n, ...] and the row of each. `restore` makes the part of a statistic. `positions`: of activations,
    where each value of the column "values" is.
    """

    key: Hashable
    rows: int
    columns: Columns
    restore: Restore
    positions: Integers | None = None


class _Places(NamedTuple):
    """Where the values of a site are: in which of `among` rows, at which positions. `taken` None: all have a row."""

    among: int
    rows: Rows
    positions: Integers
    taken: Rows | None


class Gathering:
    """Gathers the parts of one case, in their order."""

    def __init__(self, question: TraceQuestion | InterveneQuestion) -> None:
        self.question = question
        self._lens_rows: Iterator[int] | None = None
        self._places: dict[int, _Places] = {}

    def gather(self, part: Answer) -> Gathered:
        """The numbers of a part. Raises TypeError for one that has no statistics, such as a text."""
        match part:
            case Context():
                gathered = _context(part)
            case Readings():
                gathered = _readings(part)
            case LayerReadings():
                gathered = self._layers(part)
            case Corruption():
                gathered = _corruption(part)
            case RestorationGrid():
                gathered = self._grid(part)
            case Attributions():
                gathered = self._attributions(part)
            case EdgeAttributions():
                gathered = self._edges(part)
            case Activation():
                gathered = self._activation(part)
            case _:
                raise TypeError(f"a {type(part).__name__} has no statistics over cases")
        return gathered

    def _layers(self, part: LayerReadings) -> Gathered:
        method = self._method(TokenProbability)
        rows = method.read_at(self.question.asked)
        if self._lens_rows is None:
            self._lens_rows = (number for number, row in enumerate(rows) for _ in row)
        own = np.array([next(self._lens_rows)])
        names = ("log_probabilities", "logits", "ranks", "kl_divergences")
        columns = {name: (getattr(part, name).astype(np.float32, copy=False)[None], own) for name in names}
        columns["probabilities"] = np.exp(part.log_probabilities)[None], own
        if part.gradient_norms is not None:
            positions = [position for row in rows for position in row]
            columns["gradient_norms"] = part.gradient_norms[:, positions].swapaxes(0, 1), _numbered(map(len, rows))

        def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
            whole = {name: found.read(name, statistic) for name in columns}
            for row, count in enumerate(found.counts):
                numbers: dict[str, Any] = {name: values[row] for name, values in whole.items()}
                if "gradient_norms" in numbers:
                    numbers["gradient_norms"] = numbers["gradient_norms"][:, None]
                no_norms = part.gradient_norms is None
                yield replace(
                    part, **_no_top(len(part.depths)), **numbers, positions=() if no_norms else (row,), position=row,
                    count=count,
                )  # fmt: skip

        return Gathered("layers", len(rows), columns, restore)

    def _grid(self, part: RestorationGrid) -> Gathered:
        places = self._method(CausalTracing).reduced_rows
        pairs = [(taken, row) for taken, position in enumerate(part.positions)
                 for row, positions in enumerate(places) if position in positions]  # fmt: skip
        taken, rows = np.array(pairs, np.intp).reshape(-1, 2).T
        names = ("probabilities", "deviations", "logits")
        columns = {name: (getattr(part, name)[taken], rows) for name in names}

        def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
            numbers: dict[str, Any] = {name: found.read(name, statistic) for name in names}
            rows = tuple(range(len(places)))
            yield replace(part, **numbers, positions=rows, sample_probabilities=None, counts=found.counts)

        return Gathered(("grid", part.component), len(places), columns, restore)

    def _attributions(self, part: Attributions) -> Gathered:
        named = self._method(AttributionPatching).rows
        values, rows = part.estimates.swapaxes(0, 1), np.zeros(len(part.positions), np.intp)
        if named is not None:
            # Each case has one sum for a row, and none where the row has no positions.
            rows = np.array([row for row in part.positions if named[row]], np.intp)
            values = values[[bool(named[row]) for row in part.positions]]

        def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
            estimates = found.read("estimates", statistic).swapaxes(0, 1)
            yield replace(part, positions=tuple(range(len(found.counts))), estimates=estimates, counts=found.counts)

        count = 1 if named is None else len(named)
        return Gathered(("attributions", part.component, part.layers), count, {"estimates": (values, rows)}, restore)

    def _edges(self, part: EdgeAttributions) -> Gathered:
        top = self._method(AttributionPatching).edges or 0
        # Every case has the same edges, in an order of its own.
        order = np.lexsort(np.concatenate([part.receivers, part.senders], 1).T)
        senders, receivers = part.senders[order], part.receivers[order]

        def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
            by_mean = np.argsort(-np.abs(found.read("estimates", Statistic.MEAN)[0, :, 0]), kind="stable")
            first = by_mean[: top or None]
            estimates = found.read("estimates", statistic)[0][first]
            yield EdgeAttributions(0, senders[first], receivers[first], estimates)

        return Gathered("edges", 1, {"estimates": (part.estimates[order][None], SINGLE)}, restore)

    def _activation(self, part: Activation) -> Gathered:
        if part.site not in self._places:
            self._places[part.site] = _places(*self._site(part.site), self.question.asked.tokens)
        places = self._places[part.site]
        values = part.values if places.taken is None else part.values[places.taken]

        def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
            whole = found.read("values", statistic)
            yield Activation(part.run, part.site, part.layer, whole, Encoding.FLOAT32, found.counts)
            if statistic is Statistic.MEAN and (listed := found.largest()) is not None:
                yield LargestActivations(part.run, part.site, part.layer, *listed)

        key = ("activation", part.run, part.site, part.layer)
        return Gathered(key, places.among, {"values": (values, places.rows)}, restore, places.positions)

    def _site(self, number: int) -> tuple[Site, Pooling]:
        if isinstance(self.question, InterveneQuestion):
            return self.question.readout.activations[number], self.question.readout.pooling
        method = self._method(Activations)
        return method.sites[number], method.pooling

    def _method(self, kind: type[M]) -> M:
        assert isinstance(self.question, TraceQuestion)
        assert isinstance(self.question.method, kind)
        return self.question.method


def _places(site: Site, pooling: Pooling, tokens: int) -> _Places:
    sizes = site.row_sizes(tokens)
    positions, rows = np.array(site.positions_within(tokens), np.int32), _numbered(sizes)
    if pooling is Pooling.NONE:
        return _Places(len(sizes), rows, positions, None)
    # A row has one value, and none where it has no positions.
    rows, firsts = np.unique(rows, return_index=True)
    return _Places(len(sizes), rows, positions[firsts], rows)


def _context(part: Context) -> Gathered:
    assert part.clean is not None
    columns = _whole(part.clean, "log_probabilities", "logits")
    columns["probabilities"] = np.exp(part.clean.log_probabilities)[None], SINGLE

    def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
        log_probabilities, logits, probabilities = (found.read(name, statistic)[0] for name in columns)
        no_top = np.empty(0, np.int32), np.empty(0, np.float32)
        clean = Prediction(log_probabilities, logits, *no_top, probabilities)
        yield replace(part, tokens=(), position=0, clean=clean, spans=())

    return Gathered("context", 1, columns, restore)


def _readings(part: Readings) -> Gathered:
    columns = _whole(part, "log_probabilities", "logits", "kl_divergences", "edit_norms")
    columns["probabilities"] = np.exp(part.log_probabilities)[None], SINGLE

    def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
        numbers: dict[str, Any] = {name: found.read(name, statistic)[0] for name in columns}
        yield replace(part, **_no_top(len(part.logits)), **numbers)

    return Gathered(("readings", part.offset), 1, columns, restore)


def _corruption(part: Corruption) -> Gathered:
    columns = _whole(part, "probabilities", "deviations", "logits")
    columns["noise_deviation"] = np.array([part.noise_deviation], np.float32), SINGLE

    def restore(found: Sum, statistic: Statistic) -> Iterator[Answer]:
        numbers: dict[str, Any] = {name: found.read(name, statistic)[0] for name in columns}
        numbers["noise_deviation"] = float(numbers["noise_deviation"])
        yield replace(part, **numbers, positions=(), sample_probabilities=None)

    return Gathered("corruption", 1, columns, restore)


def _whole(part: object, *names: str) -> dict[str, tuple[Floats, Rows]]:
    """Those of these arrays that a part has, each as a single value."""
    found = ((name, getattr(part, name)) for name in names)
    return {name: (values[None], SINGLE) for name, values in found if values is not None}


def _no_top(count: int) -> dict[str, Any]:
    """No top tokens for `count` runs or depths."""
    return {"top_tokens": np.empty((count, 0), np.int32), "top_log_probabilities": np.empty((count, 0), np.float32)}


def _numbered(sizes: Iterable[int]) -> Rows:
    """The row of each position, given how many every row has."""
    every = list(sizes)
    return np.repeat(np.arange(len(every)), every)
