"""Which runs an Intervene asks for: a list, or a sweep and the one expansion of it."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from .edits import Edit, Operation, Patch
from .places import LAYERLESS, Site, layers_around


class Axis(enum.IntEnum):
    """An axis of a sweep."""

    LAYER = 1
    UNIT = 2
    POSITION = 3


@dataclass(frozen=True, slots=True)
class SweepAxes:
    """The entries of a sweep's axes; one that every run takes as a whole has none."""

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
    """One run per layer x unit x position, the last axis fastest. Every run takes the axes in `together` as a whole.

    The axes are resolved. Units or positions None: every run takes all that the site has.
    """

    edit: Edit
    layers: tuple[int, ...]
    units: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    together: frozenset[Axis]
    layer_window: int
    always: tuple[Edit, ...]

    @property
    def count(self) -> int:
        """How many runs there are."""
        axes = ((Axis.LAYER, self.layers), (Axis.UNIT, self.units), (Axis.POSITION, self.positions))
        return prod(len(values) for axis, values in axes if values is not None and axis not in self.together)

    @property
    def axes(self) -> SweepAxes:
        """The entries along each axis, in the order of the runs."""

        def entries(axis: Axis, values: tuple[int, ...] | None) -> tuple[int, ...]:
            return () if values is None or axis in self.together else values

        layers = None if self.edit.site.component in LAYERLESS else self.layers
        return SweepAxes(
            entries(Axis.LAYER, layers), entries(Axis.UNIT, self.units), entries(Axis.POSITION, self.positions)
        )

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
        for window in self._windows(layers):
            for units in _selections(Axis.UNIT, self.units, self.together):
                for positions in _selections(Axis.POSITION, self.positions, self.together):
                    yield self._run(window, units, positions)

    def one_unit(self) -> "Sweep":
        """The sweep over the first unit alone, for what does not depend on the unit."""
        if self.units is None or Axis.UNIT in self.together:
            return self
        return replace(self, units=self.units[:1])

    def widest(self, layers: int) -> tuple[Edit, ...]:
        """The edits of a run that changes the most layers; all runs change as many units and positions."""
        one = one_site(replace(self.edit.site, units=self.units, positions=self.positions), self.together)
        return self._run(max(self._windows(layers), key=len), one.units, one.positions)

    def _run(
        self, layers: tuple[int, ...], units: tuple[int, ...] | None, positions: tuple[int, ...] | None
    ) -> tuple[Edit, ...]:
        site = Site(self.edit.site.component, layers, units, positions, self.edit.site.from_position)
        return (*self.always, Edit(site, self._operation(positions)))

    def _windows(self, layers: int) -> list[tuple[int, ...]]:
        windows = [layers_around(layer, self.layer_window, layers) for layer in self.layers]
        if Axis.LAYER in self.together:
            return [tuple(sorted({layer for window in windows for layer in window}))]
        return windows

    def _operation(self, positions: tuple[int, ...] | None) -> Operation:
        """The operation of the run at these positions: the source positions of a patch pair with the axis."""
        operation = self.edit.operation
        if isinstance(operation, Patch) and operation.positions is not None and self.positions and positions:
            paired = dict(zip(self.positions, operation.positions, strict=True))
            return replace(operation, positions=tuple(paired[position] for position in positions))
        return operation


Plan = InterventionList | Sweep


def one_site(site: Site, together: frozenset[Axis]) -> Site:
    """The units and positions of a sweep's site that one run selects, for the shape that they have."""
    units = next(iter(_selections(Axis.UNIT, site.units, together)), ())
    positions = next(iter(_selections(Axis.POSITION, site.positions, together)), ())
    return replace(site, units=units, positions=positions)


def _selections(
    axis: Axis, values: tuple[int, ...] | None, together: frozenset[Axis]
) -> Sequence[tuple[int, ...] | None]:
    """What each run selects along one axis."""
    if values is None or axis in together:
        return [values]
    return [(value,) for value in values]
