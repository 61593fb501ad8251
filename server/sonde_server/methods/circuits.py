"""Circuits in the model: every sender's change in a column of its own, seen along the edges that are missing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Run, State
from ..engine.runs import Detour, Reads, Send
from ..questions.circuits import Edges, writers
from ..questions.graph import READ_BY_HEADS, Graph
from ..questions.places import Component
from ..questions.prompts import Prompt
from ..sharing.session import Session


class CircuitRuns:
    """Makes runs of circuits over one prompt. All of them have the same senders, so they are computed together."""

    def __init__(
        self,
        session: Session,
        clean: State,
        reading: Reading,
        positions: Sequence[int],
        captures: tuple[Capture, ...] = (),
    ) -> None:
        self._clean = clean
        self._reading = reading
        self._captures = captures
        self._read = (reading.position,)
        self._graph = Graph(session.decoder)
        self._positions = tuple(positions)
        self._detour = Detour(0, (), ())

    @classmethod
    async def of(
        cls,
        session: Session,
        clean: State,
        sources: Sequence[Prompt],
        reading: Reading,
        positions: Sequence[int],
        captures: tuple[Capture, ...] = (),
    ) -> Self:
        """Runs the sources, and reads what all senders write. Without sources the others' values are zeros."""
        runs = cls(session, clean, reading, positions, captures)
        if not runs._positions:
            # The source is like the prompt up to what is read, so that every circuit is the unchanged run.
            return runs
        places = writers(session.decoder, runs._positions)
        senders = [Capture(place.component, place.layer, place.positions) for place in places]
        await session.ready([clean])
        own = await session.values(clean, senders)
        found = [
            await session.values(state, senders)
            for state in await session.states([Base.of(source) for source in sources])
        ]
        others: list[Tensor | float] = [0.0] * len(senders)
        if found:
            others = [torch.stack(values).mean(0) for values in zip(*found, strict=True)]
        runs._detour = runs._with_senders(senders, own, others)
        return runs

    def _with_senders(
        self, captures: Sequence[Capture], own: Sequence[Tensor], others: Sequence[Tensor | float]
    ) -> Detour:
        heads = self._graph.model.heads
        sends: list[Send] = []
        for capture, value, other in zip(captures, own, others, strict=True):
            split = capture.component is Component.HEAD_OUT
            for head in range(heads) if split else (None,):
                units = None if head is None else (head,)
                given = other if head is None or isinstance(other, float) else other[:, [head]]
                edit = PlacedEdit(capture.component, capture.layer, capture.positions, units, Change("set", given))
                sends.append(Send(edit, len(sends), value))
        return Detour(len(sends), tuple(sends), ())

    def run(self, missing: Edges) -> Run:
        """The run in which receivers read the others' values along these edges."""
        gone = torch.from_numpy(missing)
        model, block = self._graph.model, self._graph.readers_per_block
        reads: list[Reads] = []
        for layer in range(model.layers):
            first = layer * block
            for component in (*READ_BY_HEADS, Component.MLP_OUT):
                count = model.units(component) if component in READ_BY_HEADS else 1
                mask = gone[first : first + count]
                first += count
                if mask.any():
                    reads.append(Reads(component, layer, mask, self._positions))
        if (mask := gone[-1:]).any():
            reads.append(Reads(Component.LOGITS, 0, mask, self._read))
        detour = replace(self._detour, reads=tuple(reads)) if reads and self._positions else None
        return Run(self._clean, (), self._reading, self._captures, detour=detour)
