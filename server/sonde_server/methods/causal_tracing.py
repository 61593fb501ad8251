"""Causal tracing: corrupt the subject, restore one clean state at a time.

Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT" (2022, arXiv 2202.05262),
section 2.1, in the exact form of its published script: noise from numpy's RandomState(seed), drawn once as
[samples, corrupted positions, D] in float64, times a standard deviation, added to the output of the token
embedding, the same in every cell. A cell restores the clean output at one position: of one block for the
residual stream, of a window of blocks around the layer for attention and MLP. Its value is the mean over
samples of the target's probability.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Answer, Corruption, Progress, RestorationGrid
from ..questions.causal_tracing import CausalTracing, Cell, Counterfactual, ExplicitNoise
from ..questions.places import LAYERLESS, PAIRWISE, Component
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .opening import Clean
from .prediction import numbers


def parts(question: TraceQuestion, method: CausalTracing, session: Session, clean: Clean) -> Iterator[Answer]:
    """The corrupted prediction, then the grids row by row with the progress."""
    noise, deviation = _noise(method, session)
    yield Progress(0, len(noise) * len(list(method.cells(session.layers))))
    corruptions = [Base(question.prompt.tokens, edit, len(noise)) for edit in _corruptions(method, noise, session)]
    corrupted = session.corrupted(corruptions, read=clean.position)
    baseline = session.read(corrupted, Reading(clean.position, clean.targets))
    yield _corruption(method, baseline, deviation)
    yield from _grids(method, session, clean, corrupted, baseline)


def _grids(
    method: CausalTracing, session: Session, clean: Clean, corrupted: list[State], baseline: list[Result]
) -> Iterator[Answer]:
    grid = list(method.cells(session.layers))
    reading = Reading(clean.position, clean.targets)
    restored = [Capture(one.component, one.layer, one.positions) for one in method.restored(session.layers)]
    values = {(one.component, one.layer): value
              for one, value in zip(restored, session.values(clean.state, restored), strict=True)}  # fmt: skip
    row_of = {position: number for number, position in enumerate(method.positions)}

    def runs() -> Iterator[Run]:
        for cell in grid:
            if method.matters(cell, clean.position):
                row = row_of[cell.position]
                edits = [_restoration(cell, layer, values[cell.component, layer], row) for layer in cell.restored]
                for state in corrupted:
                    yield Run(state, edits, reading)

    results = session.run(runs())
    total = len(grid) * len(corrupted)
    done = 0
    start = 0
    while start < len(grid):
        head = grid[start]
        row = [cell for cell in grid[start:start + len(method.layers)]
               if (cell.component, cell.position) == (head.component, head.position)]  # fmt: skip
        outcome = [
            list(islice(results, len(corrupted))) if method.matters(cell, clean.position) else baseline for cell in row
        ]
        start += len(row)
        done += len(row) * len(corrupted)
        yield _grid_row(head, row, outcome, per_sample=method.per_sample)
        yield Progress(done, total)


def _restoration(cell: Cell, layer: int, clean: Tensor, row: int) -> PlacedEdit:
    """Sets one position of one layer to its clean value; scores and patterns have their positions second."""
    value = clean[:, row : row + 1] if cell.component in PAIRWISE else clean[row : row + 1]
    return PlacedEdit(cell.component, layer, (cell.position,), None, Change("set", value))


def _grid_row(head: Cell, row: list[Cell], outcome: list[list[Result]], *, per_sample: bool) -> RestorationGrid:
    """One position of one component: [1, layers, targets]."""
    probabilities = np.stack([_probabilities(results) for results in outcome])  # [layers, samples, targets]
    logits = np.stack([np.stack([numbers(result.logits) for result in results]) for results in outcome])
    return RestorationGrid(
        head.component,
        (head.position,),
        () if head.component in LAYERLESS else tuple(cell.layer for cell in row),
        probabilities.mean(1)[None].astype(np.float32),
        probabilities.std(1)[None].astype(np.float32),
        logits.astype(np.float64).mean(1)[None].astype(np.float32),
        probabilities.transpose(0, 2, 1)[None].astype(np.float32) if per_sample else None,
    )


def _probabilities(results: list[Result]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    stacked: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.exp(
        np.stack([numbers(result.log_probabilities) for result in results]).astype(np.float64)
    )
    return stacked


def _corruption(method: CausalTracing, baseline: list[Result], deviation: float) -> Corruption:
    probabilities = _probabilities(baseline)
    logits = np.stack([numbers(result.logits) for result in baseline]).astype(np.float64)
    return Corruption(
        probabilities.mean(0).astype(np.float32),
        probabilities.std(0).astype(np.float32),
        logits.mean(0).astype(np.float32),
        method.subject,
        deviation,
        probabilities.T.astype(np.float32) if method.per_sample else None,
    )


def _noise(method: CausalTracing, session: Session) -> tuple[list[Tensor | None], float]:
    """The noise of each sample [corrupted positions, D], and its standard deviation (0: none was drawn)."""
    corruption = method.corruption
    if isinstance(corruption, Counterfactual):
        return [None], 0.0
    if isinstance(corruption, ExplicitNoise):
        return list(torch.from_numpy(np.array(corruption.values))), 0.0
    deviation = corruption.standard_deviation
    if deviation is None:
        deviation = corruption.deviations * session.engine.embedding_deviation()
    shape = (corruption.samples, len(method.subject), session.decoder.hidden_size)
    drawn = np.random.RandomState(corruption.seed).randn(*shape) * deviation
    return list(torch.from_numpy(drawn)), deviation


def _corruptions(method: CausalTracing, noise: list[Tensor | None], session: Session) -> list[PlacedEdit]:
    kind = "set" if method.replace or isinstance(method.corruption, Counterfactual) else "add"
    if isinstance(method.corruption, Counterfactual):
        other = session.states([Base(method.corruption.prompt.tokens)])[0]
        noise = [other.embedding[list(method.subject)]]
    return [
        PlacedEdit(Component.TOKEN_EMBEDDING, 0, method.subject, None, Change(kind, values))  # type: ignore[arg-type]
        for values in noise
    ]
