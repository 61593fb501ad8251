"""Paths in the model: the senders of a run with their values, and who reads them."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine import PlacedEdit, State
from ..engine.runs import Capture, Detour, Reads, Send, Through
from ..questions.edits import Edit
from ..questions.interventions import InterveneQuestion
from ..questions.paths import NO_ROUTE, Leg, Route
from ..questions.places import Component, Sized
from ..sharing.session import Session

# From an edit and its layer in a run to the edit as it is placed.
Place = Callable[[int, int], PlacedEdit]


class Detouring:
    """Makes the detours of a question's runs. `left_alone`: values of the unchanged run, by component and layer."""

    def __init__(self, question: InterveneQuestion, decoder: Sized) -> None:
        self.question = question
        self.decoder = decoder
        self._captures = {
            place: Capture(*place, positions) for place, positions in question.left_alone(decoder).items()
        }
        self._values: dict[tuple[Component, int], Tensor] = {}
        # The same tensors in every run where they are the same.
        self._masks: dict[object, Tensor] = {}

    async def read(self, session: Session, clean: State) -> None:
        """Reads the values of the unchanged run that the paths need."""
        if self._captures:
            await session.ready([clean])
            values = await session.values(clean, list(self._captures.values()))
            self._values = dict(zip(self._captures, values, strict=True))

    def detour(self, edits: Sequence[Edit], place: Place) -> Detour | None:
        """The detour of one run; None where no edit has a path. `place` places an edit of the run in a layer."""
        route = self.question.route(tuple(edits), self.decoder)
        if route is NO_ROUTE:
            return None
        sends = tuple(
            Send(place(leg.edit, leg.layer), leg.column, self._of_base(leg.component, leg)) for leg in route.senders
        )
        return Detour(route.columns, sends, self._reads(route), tuple(self._through(leg) for leg in route.through))

    def _of_base(self, component: Component, leg: Leg) -> Tensor | None:
        """The values of the unchanged run at a leg's positions, if they were read."""
        values = self._values.get((component, leg.layer))
        if values is None:
            return None
        there = self._captures[component, leg.layer].positions
        if there == leg.positions:
            return values
        if not set(leg.positions) <= set(there):
            return None
        return values[[there.index(position) for position in leg.positions]]

    def _through(self, leg: Leg) -> Through:
        stream = None
        if leg.component is Component.MLP_OUT:
            stream = self._of_base(Component.RESIDUAL_PRE if self.decoder.parallel else Component.RESIDUAL_MID, leg)
        return Through(leg.component, leg.layer, leg.column, leg.positions, leg.units, stream)

    def _reads(self, route: Route) -> tuple[Reads, ...]:
        grouped: dict[tuple[Component, int, tuple[int, ...]], list[tuple[int, tuple[int, ...] | None]]]
        grouped = defaultdict(list)
        for leg in route.receivers:
            grouped[leg.component, leg.layer, leg.positions].append((leg.column, leg.units))
        return tuple(
            Reads(component, layer, self._mask(component, route.columns, seen), positions)
            for (component, layer, positions), seen in grouped.items()
        )

    def _mask(self, component: Component, columns: int, seen: Sequence[tuple[int, tuple[int, ...] | None]]) -> Tensor:
        whole = component in (Component.MLP_OUT, Component.LOGITS)
        key = component, columns, tuple(seen)
        if key not in self._masks:
            mask = torch.zeros(1 if whole else self.decoder.units(component), columns, dtype=torch.bool)
            for column, units in seen:
                mask[slice(None) if whole or units is None else list(units), column] = True
            self._masks[key] = mask
        return self._masks[key]
