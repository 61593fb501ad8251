"""The ends of a batch's rows: the final norm, the unembedding, and what is read of the logits."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.places import END, Component
from .detours import Detours
from .layout import Layout, Row, by_choice, by_reading
from .readout import read
from .sampling import Choice, Taken, choose
from .visits import Visits

# Bytes of logits that are held at one time while a batch is read. For tensors above 32 MiB glibc maps new memory, page
# by page as they are written, which made reading GPT-2's vocabulary a third slower.
UNEMBEDDING_BYTES = 30 << 20


class Ends:
    """Those of the rows of a layout, whose stream [N, D] has left the last block."""

    def __init__(
        self, decoder: Decoder, visits: Visits, detours: Detours | None, layout: Layout, stream: Tensor
    ) -> None:
        self._decoder = decoder
        self._visits = visits
        self._detours = detours
        self._layout = layout
        self._stream = stream

    def read(self, between: Callable[[int], None]) -> None:
        """Reads all rows, as many at a time as `UNEMBEDDING_BYTES` of logits allow. `between` is called in between."""
        limit = max(1, UNEMBEDDING_BYTES // (4 * self._decoder.vocabulary_size))
        chunk: list[Row] = []
        size = 0
        # Base runs come first, because the readings of other rows may be relative to them.
        for row in sorted(self._layout.rows, key=lambda row: not row.reads):
            needed = len(_needed(row))
            if chunk and size + needed > limit:
                self._read_rows(chunk)
                between(self._decoder.layers)
                chunk, size = [], 0
            if needed:
                chunk.append(row)
                size += needed
        if chunk:
            self._read_rows(chunk)

    def _read_rows(self, rows: list[Row]) -> None:
        # Only a few positions of each row go through the final norm and the unembedding.
        picked = Layout(rows, {row: _needed(row) for row in rows})
        stream = self._stream[self._layout.pick(picked, self._stream.device)]
        if self._detours is not None:
            stream = self._detours.seen(stream, picked, Component.LOGITS, 0)
        normed = self._decoder.norm(stream)
        normed = self._visits.visit(normed, picked, Component.FINAL_NORM, 0)
        logits = self._visits.visit(self._decoder.unembed(normed), picked, Component.LOGITS, 0)
        for row in rows:
            for position in row.reads:
                assert row.state is not None
                row.state.logits[position] = logits[picked.index(row, position)].clone()
        taken: dict[Row, dict[Choice, Taken | None]] = defaultdict(dict)
        for chosen_alike in by_choice(rows):
            index = [picked.index(row, choice.position) for row, choice in chosen_alike]
            found = choose(logits[index], chosen_alike[0][1])
            for (row, choice), one in zip(chosen_alike, found, strict=True):
                taken[row][choice] = one
        # Last, because it overwrites the logits.
        for reading, group in by_reading(rows).items():
            index = [picked.index(row, reading.position) for row in group]
            # Usually this is all rows, and their logits, which are large, need not be copied.
            chosen = logits if index == list(range(len(logits))) else logits[torch.tensor(index, device=logits.device)]
            for row, result in zip(group, read(self._decoder, chosen, reading), strict=True):
                row.result = result
        for row in rows:
            row.result.taken = tuple(taken[row][choice] for choice in row.choices)


def _needed(row: Row) -> list[int]:
    """The positions of a row that are needed above all blocks."""
    positions = {position for place in row.places if place.component in END for position in place.positions}
    positions.update(row.reads)
    if row.reading is not None:
        positions.add(row.reading.position)
    positions.update(choice.position for choice in row.choices)
    return sorted(positions)
