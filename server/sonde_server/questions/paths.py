"""Where the changes of one run leave the residual stream, what they go through, and which reads see them."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .edits import Edit, Path
from .extents import NO_DETOUR, Detoured
from .graph import READ_BY_HEADS, precedes
from .places import END, Component, Site, Sized


@dataclass(frozen=True, slots=True)
class Leg:
    """A sender, a receiver, or a node between: one component of one layer, for one column of the run.

    `edit`: of a sender, the number of its edit in the run.
    """

    component: Component
    layer: int
    positions: tuple[int, ...]
    column: int
    units: tuple[int, ...] | None = None
    edit: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """The paths of one run. Edits with equal paths go together, in one column."""

    columns: int
    senders: tuple[Leg, ...]
    receivers: tuple[Leg, ...]
    through: tuple[Leg, ...]

    @property
    def detoured(self) -> Detoured:
        """Its places, which decide what the run computes."""
        return Detoured(self.senders, self.receivers, self.through)

    @property
    def passed(self) -> int:
        """How many positions go through nodes, which is work beside that of the run."""
        return sum(len(leg.positions) for leg in self.through)


NO_ROUTE = Route(0, (), (), ())


def detoured(route: Route) -> Detoured:
    """The places of a route; NO_DETOUR where there is none."""
    return NO_DETOUR if route is NO_ROUTE else route.detoured


def route_of(edits: Sequence[Edit], model: Sized, tokens: int, read: AbstractSet[int]) -> Route:
    """The paths of the edits that have one. `read`: the positions where the final norm or the logits are read."""
    columns: dict[Path, list[int]] = {}
    for number, edit in enumerate(edits):
        if edit.path is not None:
            columns.setdefault(edit.path, []).append(number)
    if not columns:
        return NO_ROUTE
    senders: list[Leg] = []
    receivers: list[Leg] = []
    through: list[Leg] = []
    for column, (path, numbers) in enumerate(columns.items()):
        own = [
            Leg(site.component, layer, site.positions_within(tokens), column, site.units, number)
            for number in numbers
            for site in (edits[number].site,)
            for layer in site.layers
        ]
        course = _Course(path, own, column, model, tokens, read)
        senders += own
        receivers += course.receivers
        through += course.through
    return Route(len(columns), tuple(senders), tuple(receivers), tuple(through))


class _Course:
    """What the changes of one column reach."""

    def __init__(
        self, path: Path, senders: Sequence[Leg], column: int, model: Sized, tokens: int, read: AbstractSet[int]
    ) -> None:
        self._senders = senders
        self._column = column
        self._model = model
        self._tokens = tokens
        self._read = read
        # Heads carry a change on to later positions; without them it stays where it is.
        self._spreads = any(site.component is Component.HEAD_OUT for site in path.through)
        self.receivers = [leg for site in path.receivers for leg in self._receivers(site)]
        reached = {position for leg in self.receivers for position in leg.positions}
        self.through = [leg for site in path.through for leg in self._through(site, reached)] if reached else []

    def _differing(self, component: Component, layer: int) -> tuple[int, ...]:
        """The positions where what a component reads may differ."""
        before = [leg for leg in self._senders if precedes((leg.component, leg.layer), (component, layer), self._model)]
        positions = {position for leg in before for position in leg.positions}
        if positions and self._spreads:
            return tuple(range(min(positions), self._tokens))
        return tuple(sorted(positions))

    def _receivers(self, site: Site) -> list[Leg]:
        there = set(site.positions_within(self._tokens))
        if site.component in END:
            there &= self._read
        found = []
        for layer in site.layers:
            positions = tuple(p for p in self._differing(site.component, layer) if p in there)
            if positions:
                found.append(Leg(site.component, layer, positions, self._column, site.units))
        return found

    def _through(self, site: Site, reached: AbstractSet[int]) -> list[Leg]:
        found = []
        for layer in site.layers:
            units = self._handing_on(site, layer)
            component = Component.QUERY if site.component is Component.HEAD_OUT else Component.MLP_OUT
            positions = self._differing(component, layer)
            if not self._spreads:
                positions = tuple(position for position in positions if position in reached)
            if positions and units != () and self._reaches(site.component, layer):
                found.append(Leg(site.component, layer, positions, self._column, units))
        return found

    def _handing_on(self, site: Site, layer: int) -> tuple[int, ...] | None:
        """The heads of a layer that hand the change on; of an MLP None, or () if it does not.

        What a node that is a receiver makes of the change is in the run, and a sender sends what it is told to.
        """
        if site.component is not Component.HEAD_OUT:
            received = any(leg.component is Component.MLP_OUT and leg.layer == layer for leg in self.receivers)
            sends = any(leg.component is Component.MLP_OUT and leg.layer == layer for leg in self._senders)
            return () if received or (sends and self._everywhere(Component.MLP_OUT, layer, None)) else None
        group = self._model.heads // self._model.key_value_heads
        taken: set[int] = set()
        for leg in self.receivers:
            if leg.component in READ_BY_HEADS and leg.layer == layer:
                units = range(self._model.units(leg.component)) if leg.units is None else leg.units
                each = 1 if leg.component is Component.QUERY else group
                taken.update(unit * each + i for unit in units for i in range(each))
        heads = range(self._model.heads) if site.units is None else site.units
        return tuple(
            head for head in heads if head not in taken and not self._everywhere(Component.HEAD_OUT, layer, head)
        )

    def _everywhere(self, component: Component, layer: int, unit: int | None) -> bool:
        """Whether a node is a sender at every position."""
        return any(
            leg.component is component
            and leg.layer == layer
            and (unit is None or leg.units is None or unit in leg.units)
            and len(leg.positions) == self._tokens
            for leg in self._senders
        )

    def _reaches(self, component: Component, layer: int) -> bool:
        """Whether a receiver comes after a node."""
        return any(precedes((component, layer), (leg.component, leg.layer), self._model) for leg in self.receivers)
