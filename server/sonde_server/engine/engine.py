"""The engine: turns bases and runs into rows, executes them, keeps the states of recent bases."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.extents import Extent, extent_of
from ..questions.places import Component
from ..questions.prompts import Target
from .cache import StateCache
from .decoding import Slot, allot
from .execute import Execution, Work
from .layout import Row
from .memory import Memory
from .readout import divergence, logits_of, read
from .runs import Base, Capture, PlacedEdit, Reading, Result, Run, State
from .sampling import Choice


class Engine:
    """Owns a decoder. Everything that computes must be called from the one thread that owns the model."""

    def __init__(self, decoder: Decoder, *, cache_bytes: int = 1 << 30) -> None:
        self.decoder = decoder
        self.cache = StateCache(cache_bytes)
        self.memory = Memory(decoder)
        self.work = Work()
        self._deviation: float | None = None

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return self.decoder.layers

    def warm_up(self) -> None:
        """One pass over the smallest prompt, so that the first caller does not pay for what is set up lazily."""
        row = self.base_row(Base((0, 0)), None)
        row.reads = (1,)
        self.execute([row])

    # ------------------------------------------------------------ bases

    def base_row(self, base: Base, clean: State | None) -> Row:
        """The row that computes a base in full; a corrupted one starts where it differs from its clean state."""
        tokens = len(base.tokens)
        if base.corruption is None:
            return Row(base.tokens, None, Extent.whole(self.layers, tokens), {}, state=State(base.tokens))
        edits = {(base.corruption.component, 0): [base.corruption]}
        extent = Extent.whole(self.layers, tokens, min(base.corruption.positions))
        return Row(base.tokens, clean, extent, edits, state=State(base.tokens))

    def kept(self, state: State, capture: Capture) -> Tensor:
        """The values of a component that is kept of every base run (places.KEPT), on the CPU in float32."""
        parts = {
            Component.TOKEN_EMBEDDING: lambda: state.embedding,
            Component.RESIDUAL_PRE: lambda: state.residual[capture.layer],
            Component.RESIDUAL_POST: lambda: state.residual[capture.layer + 1],
            Component.KEY: lambda: state.keys[capture.layer],
            Component.VALUE: lambda: state.values[capture.layer],
        }
        values = parts[capture.component]()[list(capture.positions)]
        return (values if capture.units is None else values[:, list(capture.units)]).float().cpu()

    def read(self, states: Sequence[State], reading: Reading) -> list[Result]:
        """What is read of base runs as they are.

        The last prediction of each is kept: whoever goes on asking about a prompt reads the same of it every time, and
        it would be worked out beside the model, which wants the processor for itself.
        """
        one = states[0] if len(states) == 1 and reading.clean in (None, states[0]) else None
        how = (reading.position, reading.targets, reading.top_k, reading.clean is None, reading.divergence)
        # Taken once: the thread of another call may put its own in place meanwhile.
        last = None if one is None else one.prediction
        if last is not None and last[0] == how:
            return [last[1]]
        with torch.inference_mode():
            logits = [logits_of(self.decoder, state, reading.position) for state in states]
            results = read(self.decoder, torch.stack(logits), reading)
        if one is not None:
            one.prediction = how, results[0]
        return results

    # ------------------------------------------------------------ runs

    def run_row(self, run: Run) -> Row:
        """The row that computes a run."""
        return Row(
            run.base.tokens,
            run.base,
            self._extent(run),
            _by_place(run.edits),
            run.captures,
            run.reading,
            run.receipts,
            choice=run.choice,
        )

    def _extent(self, run: Run) -> Extent:
        read = None if run.reading is None else run.reading.position
        tokens, continued = len(run.base.tokens), run.choice is not None
        return extent_of(run.edits, run.captures, read, tokens, self.layers, continued=continued)

    def continued_rows(self, rows: Sequence[Row], limit: int) -> list[Slot]:
        """Has rows of runs over one prompt keep what their continuation needs; none grows beyond `limit` positions.

        What is not in the slots that it returns is in their base.
        """
        ends = [len(row.tokens) for row in rows]
        firsts = [
            row.extent.first if row.extent.start < self.layers else end for row, end in zip(rows, ends, strict=True)
        ]
        slots = allot(firsts, limit)
        for row, slot in zip(rows, slots, strict=True):
            row.slot = slot
        return slots

    def step_row(self, base: State, slot: Slot, token: int, edits: Sequence[PlacedEdit], choice: Choice) -> Row:
        """The row that puts one more token behind a run, at the position where the next is chosen."""
        extent = Extent.whole(self.layers, choice.position + 1, choice.position)
        return Row((token,), base, extent, _by_place(edits), slot=slot, choice=choice)

    def execute(self, rows: Sequence[Row], between: Callable[[int], None] = lambda done: None) -> None:
        """Computes the rows as one batch, or as two halves where the device's memory does not hold it.

        `between` is called between blocks with the number of blocks that are done; it may execute another batch.
        Rows that are abandoned meanwhile are `dropped`, the others have their result and state then. Raises
        torch.OutOfMemoryError when not even one row fits.
        """
        if not rows:
            return
        try:
            with torch.inference_mode():
                Execution(self.decoder, rows, self.work, between).run()
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        else:
            self.work.batches += 1
            self.work.rows += len(rows)
            return
        # Outside of the handler, whose traceback holds on to the batch's tensors.
        half = len(rows) // 2
        self.execute(rows[:half], between)
        self.execute(rows[half:], between)

    # ------------------------------------------------------------ readings of the stream

    def _unembedded(self, stream: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.decoder.unembed(self.decoder.norm(stream)).float()

    def lens(
        self, state: State, position: int, targets: Sequence[Target], top_k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The logit lens at every depth: final norm and unembedding of the stream (nostalgebraist 2020).

        Returns log-probabilities, logits and ranks [depths, targets], KL(final || depth) [depths], top token ids
        and their log-probabilities [depths, top_k].
        """
        # One row at a time: a reading does not depend on how many are read beside it.
        logits = torch.cat([self._unembedded(stream[position : position + 1]) for stream in state.residual])
        spread = torch.log_softmax(logits, dim=-1)
        index = torch.tensor([target.token for target in targets], device=logits.device)
        values = logits[:, index].clone()
        for column, target in enumerate(targets):
            if target.contrast is not None:
                values[:, column] -= logits[:, target.contrast]
        ranks = (logits[:, None, :] > logits[:, index][:, :, None]).sum(-1).int()
        top = spread.topk(top_k, dim=-1)
        kl = divergence(spread[-1], spread)
        parts = (spread[:, index], values, ranks, kl, top.indices.int(), top.values)
        return tuple(part.cpu() for part in parts)  # type: ignore[return-value]

    def embedding_deviation(self) -> float:
        """Unbiased standard deviation of all entries of all tokens' embeddings."""
        if self._deviation is None:
            with torch.inference_mode():
                self._deviation = self.decoder.embedding_deviation()
        return self._deviation


def _by_place(edits: Iterable[PlacedEdit]) -> dict[tuple[Component, int], list[PlacedEdit]]:
    placed: dict[tuple[Component, int], list[PlacedEdit]] = defaultdict(list)
    for edit in edits:
        if edit.positions:
            placed[edit.component, edit.layer].append(edit)
    return dict(placed)
