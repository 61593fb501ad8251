"""Where edits lie in the model: each one layer by layer, with its values as tensors."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, State
from ..engine.runs import Detour
from ..questions.edits import Add, Edit, Knockout, Multiply, Noise, Patch, ProjectOut, Scale, Set, Values
from ..questions.interventions import InterveneQuestion
from ..questions.places import PAIRWISE, Component, Site
from ..sharing.session import Session
from .detouring import Detouring


class Placing:
    """Places the edits of a question's runs."""

    def __init__(self, question: InterveneQuestion, session: Session) -> None:
        self.question = question
        self.session = session
        self.tokens = question.asked.tokens
        self._tensors: dict[int, Tensor] = {}
        self._captures = {
            place: Capture(place[1], place[2], positions)
            for place, positions in question.sourced(session.layers).items()
        }
        self._sourced: dict[tuple[int, Component, int], Tensor] = {}
        self._detouring = Detouring(question, session.decoder)

    @classmethod
    async def of(cls, question: InterveneQuestion, session: Session, clean: State) -> Self:
        """Runs the sources, whose values the patches take, and reads what paths need of the unchanged run, `clean`."""
        placing = cls(question, session)
        await placing._detouring.read(session, clean)
        for number, state in enumerate(await session.states([Base.of(source) for source in question.sources])):
            places = [place for place in placing._captures if place[0] == number]
            values = await session.values(state, [placing._captures[place] for place in places])
            placing._sourced.update(zip(places, values, strict=True))
        return placing

    def place(self, edits: tuple[Edit, ...]) -> list[PlacedEdit]:
        """The edits of one run without a path, layer by layer; the receipt of each is its number in the run."""
        return [
            self._placed(edit, layer, receipt)
            for receipt, edit in enumerate(edits)
            if edit.path is None
            for layer in edit.site.layers
        ]

    def detour(self, edits: tuple[Edit, ...]) -> Detour | None:
        """Those with a path."""
        return self._detouring.detour(edits, lambda number, layer: self._placed(edits[number], layer, number))

    def _placed(self, edit: Edit, layer: int, receipt: int) -> PlacedEdit:
        return PlacedEdit(
            edit.site.component,
            layer,
            edit.site.positions_within(self.tokens),
            edit.site.units,
            self._change(edit, layer),
            receipt,
        )

    def _change(self, edit: Edit, layer: int) -> Change:
        match edit.operation:
            case Scale(factor):
                change = Change("multiply", factor)
            case Set(values):
                change = Change("set", self._tensor(values))
            case Add(values):
                change = Change("add", self._tensor(values))
            case Multiply(values):
                change = Change("multiply", self._tensor(values))
            case ProjectOut(direction):
                change = Change("project", self._tensor(direction))
            case Knockout(keys):
                change = Change("knockout", keys=keys)
            case Noise() as noise:
                change = Change("add", self._noise(edit.site, noise))
            case Patch() as patch:
                change = Change("set", self._patch(edit.site, patch, layer))
        return change

    def _tensor(self, values: Values) -> Tensor:
        """One tensor for an array, however many runs share it."""
        if id(values) not in self._tensors:
            self._tensors[id(values)] = torch.from_numpy(np.array(values)).to(self.session.decoder.device)
        return self._tensors[id(values)]

    def _noise(self, site: Site, noise: Noise) -> Tensor:
        positions = len(site.positions_within(self.tokens))
        shape = self.session.decoder.selected_shape(site.component, site.units, positions, self.tokens)
        drawn = np.random.RandomState(noise.seed).randn(*shape)
        return torch.from_numpy(drawn * noise.standard_deviation)

    def _patch(self, site: Site, patch: Patch, layer: int) -> Tensor:
        """Mean over the sources of the site's value, in the shape that the run selects."""
        values = []
        for number, source in enumerate(patch.sources):
            place = source, site.component, patch.layer_for(layer)
            taken = self._captures[place].positions
            rows = [taken.index(position) for position in self.question.source_positions(site, patch, number)]
            values.append(_select(self._sourced[place], site, rows))
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def _select(values: Tensor, site: Site, positions: Sequence[int]) -> Tensor:
    rows = torch.tensor(positions, device=values.device)
    units = None if site.units is None else torch.tensor(site.units, device=values.device)
    if site.component in PAIRWISE:
        chosen = values if units is None else values[units]
        return chosen[:, rows]
    chosen = values[rows]
    return chosen if units is None else chosen[:, units]
