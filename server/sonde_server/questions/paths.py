"""Where the changes of one run leave the residual stream, what they go through, and which reads see them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .edits import Edit, Patch, Path, Set
from .extents import NO_DETOUR, Detoured
from .graph import READ_BY_HEADS, precedes
from .images import CAUSAL, Sight
from .places import END, HEADED, Component, Site, Sized


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


def path_of(receivers: Iterable[Site], through: Iterable[Site], model: Sized, tokens: int) -> Path:
    """The path of these receivers and nodes. Paths that mean the same are equal, however their sites are divided."""
    return Path(_disjoint(receivers, model, tokens), _disjoint(through, model, tokens))


def _disjoint(sites: Iterable[Site], model: Sized, tokens: int) -> tuple[Site, ...]:
    """The places of these sites, in sites of which no two have a unit of a layer in common."""
    by_component: dict[Component, list[Site]] = defaultdict(list)
    for site in sites:
        by_component[site.component].append(site)
    found: list[Site] = []
    for component, some in sorted(by_component.items()):
        count = model.units(component) if component in HEADED else 1
        every = tuple(range(count))
        # What each unit of a layer has is only written out where sites may overlap.
        for layers, units, positions in _alike(some, every, tokens) if len(some) > 1 else _as_it_is(some[0], tokens):
            found.append(
                Site(
                    component,
                    tuple(sorted(layers)),
                    None if units is None or len(units) == count else tuple(sorted(units)),
                    None if len(positions) == tokens else tuple(sorted(positions)),
                )
            )
    return tuple(found)


# Layers, units (None: all) and positions.
_Places = tuple[Sequence[int], Sequence[int] | None, AbstractSet[int]]


def _as_it_is(site: Site, tokens: int) -> list[_Places]:
    return [(site.layers, site.units, set(site.positions_within(tokens)))]


def _alike(sites: Sequence[Site], every: Sequence[int], tokens: int) -> list[_Places]:
    """The units of layers that have the same positions, in ascending order."""
    there: dict[tuple[int, int], frozenset[int]] = {}
    for site in sites:
        positions = frozenset(site.positions_within(tokens))
        for layer in site.layers:
            for unit in every if site.units is None else site.units:
                there[layer, unit] = there.get((layer, unit), frozenset()) | positions
    units: dict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
    for (layer, unit), positions in sorted(there.items(), key=lambda item: item[0]):
        units[layer, positions].append(unit)
    layers: dict[tuple[tuple[int, ...], frozenset[int]], list[int]] = defaultdict(list)
    for (layer, positions), some in units.items():
        layers[tuple(some), positions].append(layer)
    return [(where, some, positions) for (some, positions), where in layers.items()]


def detoured(route: Route) -> Detoured:
    """The places of a route; NO_DETOUR where there is none."""
    return NO_DETOUR if route is NO_ROUTE else route.detoured


def route_of(edits: Sequence[Edit], model: Sized, tokens: int, read: AbstractSet[int], sight: Sight = CAUSAL) -> Route:
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
        given = [leg for leg in own if isinstance(edits[leg.edit].operation, Set | Patch)]
        course = _Course(path, own, given, column, model, tokens, read, sight)
        senders += own
        receivers += course.receivers
        through += course.through
    return Route(len(columns), tuple(senders), tuple(receivers), tuple(through))


class _Course:
    """What the changes of one column reach."""

    def __init__(
        self,
        path: Path,
        senders: Sequence[Leg],
        given: Sequence[Leg],
        column: int,
        model: Sized,
        tokens: int,
        read: AbstractSet[int],
        sight: Sight,
    ) -> None:
        self._path = path
        self._senders = senders
        # Senders whose values are given, whatever they would make of the change.
        self._given = given
        self._column = column
        self._model = model
        self._tokens = tokens
        self._read = read
        self._sight = sight
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
            return tuple(range(self._sight.begins(min(positions)), self._tokens))
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

        What a node that is a receiver makes of the change is in the run. A sender whose values are given sends those.
        """
        receivers = [one for one in self._path.receivers if layer in one.layers]
        if site.component is not Component.HEAD_OUT:
            received = any(one.component is Component.MLP_OUT for one in receivers)
            return () if received or self._is_given(Component.MLP_OUT, layer) else None
        group = self._model.heads // self._model.key_value_heads
        taken: set[int] = set()
        for one in receivers:
            if one.component in READ_BY_HEADS:
                units = range(self._model.units(one.component)) if one.units is None else one.units
                each = 1 if one.component is Component.QUERY else group
                taken.update(unit * each + i for unit in units for i in range(each))
        heads = range(self._model.heads) if site.units is None else site.units
        return tuple(
            head for head in heads if head not in taken and not self._is_given(Component.HEAD_OUT, layer, head)
        )

    def _is_given(self, component: Component, layer: int, head: int | None = None) -> bool:
        """Whether all that a node writes is given, at every position."""
        return any(
            leg.component is component
            and leg.layer == layer
            and (leg.units is None or head in leg.units)
            and len(leg.positions) == self._tokens
            for leg in self._given
        )

    def _reaches(self, component: Component, layer: int) -> bool:
        """Whether a receiver comes after a node."""
        return any(precedes((component, layer), (leg.component, leg.layer), self._model) for leg in self.receivers)
