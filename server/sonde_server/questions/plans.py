"""Which runs an Intervene asks for: a list, or a sweep, which is expanded here and nowhere else."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import prod

from .circuits import Circuits
from .edits import Edit, Patch
from .places import LAYERLESS, Site, layers_around


class Axis(enum.IntEnum):
    """An axis of a sweep."""

    LAYER = 1
    UNIT = 2
    POSITION = 3


@dataclass(frozen=True, slots=True)
class SweepAxes:
    """The entries of a sweep's axes; one that every run takes as a whole has none. Named positions count as entries."""

    layers: tuple[int, ...]
    units: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Intervention:
    """Edits that are made in one run."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class InterventionList:
    """Runs that are spelled out, one by one."""

    interventions: tuple[Intervention, ...]

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.interventions)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every edit."""
        return tuple(edit for intervention in self.interventions for edit in intervention.edits)

    @property
    def edits_per_run(self) -> int:
        """The most edits that a run has."""
        return max(len(intervention.edits) for intervention in self.interventions)

    @property
    def axes(self) -> None:
        """A list has none."""
        return

    def runs(self, _layers: int) -> Iterator[tuple[Edit, ...]]:
        """The edits of every run."""
        return (intervention.edits for intervention in self.interventions)

    def one_unit(self) -> "InterventionList":
        """The same list: nothing in it is repeated by unit."""
        return self


@dataclass(frozen=True, slots=True)
class Sweep:
    """One run per layer x unit x row of positions of an edit's site, the last axis fastest.

    Every run takes the axes in `together` as a whole, and also makes the edits in `always`. Each layer is changed with
    those around it, `layer_window` in all. An axis of the site that is None is not swept: every run takes all of it.
    """

    edit: Edit
    together: frozenset[Axis] = frozenset()
    layer_window: int = 1
    always: tuple[Edit, ...] = ()

    @property
    def count(self) -> int:
        """How many runs there are."""
        site = self.edit.site
        axes = ((Axis.LAYER, site.layers), (Axis.UNIT, site.units))
        swept = (len(values) for axis, values in axes if values is not None and axis not in self.together)
        return prod(swept) * len(_rows(site, self.together))

    @property
    def axes(self) -> SweepAxes:
        """The entries along each axis, in the order of the runs."""

        def entries(axis: Axis, values: tuple[int, ...] | None) -> tuple[int, ...]:
            return () if values is None or axis in self.together else values

        site = self.edit.site
        layers = None if site.component in LAYERLESS else site.layers
        positions = site.positions if site.rows is None else tuple(range(len(site.rows)))
        return SweepAxes(entries(Axis.LAYER, layers), entries(Axis.UNIT, site.units), entries(Axis.POSITION, positions))

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every edit, the swept one with all of its axes."""
        return (*self.always, self.edit)

    @property
    def edits_per_run(self) -> int:
        """How many edits each run has."""
        return len(self.always) + 1

    def runs(self, layers: int) -> Iterator[tuple[Edit, ...]]:
        """The edits of every run, in a model of `layers` layers: `always`, then the swept one."""
        site = self.edit.site
        rows = _rows(site, self.together)
        for window in self._windows(layers):
            for units in _units(site, self.together):
                for row in rows:
                    yield self._run(window, units, row)

    def one_unit(self) -> "Sweep":
        """The sweep over the first unit alone, for what does not depend on the unit."""
        site = self.edit.site
        if site.units is None or Axis.UNIT in self.together:
            return self
        return replace(self, edit=replace(self.edit, site=replace(site, units=site.units[:1])))

    def widest(self, layers: int) -> tuple[Edit, ...]:
        """The edits of a run that changes the most layers and positions. In units all runs are the same size."""
        site = self.edit.site
        rows = _rows(site, self.together)
        sizes = [len(_select(site, row).positions or ()) for row in rows]
        widest = rows[sizes.index(max(sizes))] if rows else slice(0)
        units = next(iter(_units(site, self.together)), ())
        return self._run(max(self._windows(layers), key=len), units, widest)

    def _run(self, layers: tuple[int, ...], units: tuple[int, ...] | None, row: slice) -> tuple[Edit, ...]:
        swept, operation = self.edit.site, self.edit.operation
        positions = None if swept.positions is None else swept.positions[row]
        site = Site(swept.component, layers, units, positions, swept.from_position)
        if isinstance(operation, Patch) and operation.positions is not None:
            # The positions in the sources pair with those of the axis.
            operation = replace(operation, positions=tuple(positions[row] for positions in operation.positions))
        return (*self.always, Edit(site, operation, self.edit.path))

    def _windows(self, layers: int) -> list[tuple[int, ...]]:
        windows = [layers_around(layer, self.layer_window, layers) for layer in self.edit.site.layers]
        if Axis.LAYER in self.together:
            return [tuple(sorted({layer for window in windows for layer in window}))]
        return windows


Plan = InterventionList | Sweep | Circuits


def run_sites(site: Site, together: frozenset[Axis]) -> Iterator[Site]:
    """What one run of a sweep selects of its site, for the shape: one for each number of positions that a run has."""
    units = next(iter(_units(site, together)), ())
    seen: set[int | None] = set()
    for row in _rows(site, together):
        one = replace(_select(site, row), units=units)
        size = None if one.positions is None else len(one.positions)
        if size not in seen:
            seen.add(size)
            yield one


def _units(site: Site, together: frozenset[Axis]) -> Sequence[tuple[int, ...] | None]:
    """The units that each run selects."""
    if site.units is None or Axis.UNIT in together:
        return [site.units]
    return [(unit,) for unit in site.units]


def _rows(site: Site, together: frozenset[Axis]) -> Sequence[slice]:
    """Which of the site's positions each run selects."""
    if site.positions is None or Axis.POSITION in together:
        return [slice(None)]
    ends = accumulate(site.row_sizes(0), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _select(site: Site, row: slice) -> Site:
    return replace(site, positions=None if site.positions is None else site.positions[row], rows=None)
