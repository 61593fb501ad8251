"""The engine turns bases and runs into rows, executes them, and keeps the states of recent bases."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..model.anatomy import Decoder
from ..questions.extents import NO_DETOUR, Extent, extent_of
from ..questions.images import sight_of
from ..questions.places import Component
from ..questions.prompts import Target
from .cache import StateCache
from .execute import Execution, Work
from .layout import Row
from .memory import Memory
from .pooling import leaving
from .readout import divergence, logits_of, read
from .runs import Asked, Base, Capture, PlacedEdit, Reading, Result, Run, State
from .sampling import Choice
from .slots import Slot, allot

# How much of the cache is for what the model makes of images, so that another question about one need not look again.
IMAGES_SHARE = 1 / 8


class Engine:
    """Owns a decoder. Methods that compute must be called from the one thread that owns the model."""

    def __init__(self, decoder: Decoder, *, cache_bytes: int = 1 << 30) -> None:
        self.decoder = decoder
        if decoder.eye is not None:
            decoder.eye.limit = int(IMAGES_SHARE * cache_bytes)
            cache_bytes -= decoder.eye.limit
        self.cache = StateCache(cache_bytes)
        self.memory = Memory(decoder)
        self.work = Work()
        self._deviation: float | None = None

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return self.decoder.layers

    def warm_up(self) -> None:
        """Runs a very short prompt, so that the first caller does not wait for what is set up on first use."""
        row = self.base_row(Base((0, 0)), None)
        row.reads = (1,)
        self.execute([row])

    # ------------------------------------------------------------ bases

    def base_row(self, base: Base, clean: State | None) -> Row:
        """The row that computes a base. A corrupted one starts at the first position that differs from `clean`."""
        tokens, state = len(base.tokens), State(base.tokens, image=base.image)
        if base.corruption is None:
            return Row(base.tokens, None, Extent.whole(self.layers, tokens), state=state)
        first = sight_of(base.image).begins(min(base.corruption.positions))
        return Row(base.tokens, clean, Extent.whole(self.layers, tokens, first), (base.corruption,), state=state)

    def look(self, row: Row) -> None:
        """Prepares the image of a row that computes a clean base, on the thread of who asks, not the model's."""
        eye = self.decoder.eye
        if eye is not None and row.image is not None and row.prefix is None and not eye.knows(row.image):
            row.inputs = eye.inputs(row.image)

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
        return leaving(values if capture.units is None else values[:, list(capture.units)], capture)

    def read(self, states: Sequence[State], reading: Reading) -> list[Result]:
        """What is read of base runs.

        The last prediction of each is kept, because later questions about a prompt mostly read the same. Reading it
        again would take processor time from the model.
        """
        one = states[0] if len(states) == 1 and reading.clean in (None, states[0]) else None
        asked = Asked(reading.position, reading.targets, reading.top_k, reading.clean is None, reading.divergence)
        # Taken once, because the thread of another call may replace it meanwhile.
        last = None if one is None else one.prediction
        if last is not None and last[0] == asked:
            return [last[1]]
        with torch.inference_mode():
            logits = [logits_of(self.decoder, state, reading.position) for state in states]
            results = read(self.decoder, torch.stack(logits), reading)
        if one is not None:
            one.prediction = asked, results[0]
        return results

    # ------------------------------------------------------------ runs

    def run_row(self, run: Run) -> Row:
        """The row that computes a run."""
        return Row(
            run.base.tokens,
            run.base,
            self._extent(run),
            _placed(run.edits),
            run.captures,
            run.reading,
            run.receipts,
            choices=run.choices,
            detour=run.detour,
        )

    def _extent(self, run: Run) -> Extent:
        read = None if run.reading is None else run.reading.position
        tokens = len(run.base.tokens)
        detoured = NO_DETOUR if run.detour is None else run.detour.detoured
        return extent_of(
            run.edits,
            run.captures,
            read,
            tokens,
            self.layers,
            continued=bool(run.choices),
            detoured=detoured,
            sight=sight_of(run.base.image),
        )

    def continued_rows(self, rows: Sequence[Row], limit: int) -> list[Slot]:
        """Gives rows of runs over one prompt slots, and returns them. No run grows beyond `limit` positions.

        A slot holds the keys and values from the first position where the run differs from its base.
        """
        ends = [len(row.tokens) for row in rows]
        firsts = [
            row.extent.first if row.extent.start < self.layers else end for row, end in zip(rows, ends, strict=True)
        ]
        slots = allot(firsts, limit)
        for row, slot in zip(rows, slots, strict=True):
            row.slot = slot
        return slots

    def branched(self, base: State, slot: Slot) -> State:
        """What continuations of a run over `base` share: the prompt's keys and values, the last of them in `slot`."""
        end = len(base.tokens)
        if slot.first >= end:
            return base
        shared = State(base.tokens, image=base.image)
        for layer, (keys, values) in enumerate(zip(base.keys, base.values, strict=True)):
            held = slot.cache.layer(layer, end - slot.first, keys)
            for whole, known, own in zip((shared.keys, shared.values), (keys, values), held, strict=True):
                whole.append(torch.cat([known[: slot.first], own[slot.number, : end - slot.first]]))
        return shared

    def branches(self, base: State, count: int, limit: int) -> list[Slot]:
        """Slots for `count` continuations that share `base`. None grows beyond `limit` positions."""
        return allot([len(base.tokens)] * count, limit)

    def step_row(
        self,
        base: State,
        slot: Slot,
        token: int,
        edits: Sequence[PlacedEdit],
        choice: Choice,
        captures: tuple[Capture, ...] = (),
    ) -> Row:
        """The row that appends a token to a run, at the position after which the next one is chosen."""
        extent = Extent.whole(self.layers, choice.position + 1, choice.position)
        return Row((token,), base, extent, _placed(edits), captures, slot=slot, choices=(choice,))

    def execute(self, rows: Sequence[Row], between: Callable[[int], None] = lambda done: None) -> None:
        """Computes the rows as one batch, or as two halves if the device's memory is too small for it.

        `between` is called between blocks with the number of blocks that are done; it may execute another batch.
        Afterwards every row has its result and its state, except those that were abandoned meanwhile: they are
        `dropped`. Raises torch.OutOfMemoryError if a single row does not fit.
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
        # Outside the handler, because its traceback refers to the batch's tensors.
        half = len(rows) // 2
        self.execute(rows[:half], between)
        self.execute(rows[half:], between)

    # ------------------------------------------------------------ the lens

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
        # One depth at a time, so that the last bits do not depend on the number of layers.
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


def _placed(edits: Sequence[PlacedEdit]) -> Sequence[PlacedEdit]:
    """The edits that select any position."""
    return [edit for edit in edits if edit.positions]
