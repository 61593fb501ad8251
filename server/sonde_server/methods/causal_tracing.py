"""Causal tracing: corrupt the subject, then restore one clean state at a time.

Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT" (2022, arXiv 2202.05262),
section 2.1, in the exact form of its published script. Noise from numpy's RandomState(seed), drawn once as
[samples, corrupted positions, D] in float64 and multiplied by a standard deviation, is added to the output of the token
embedding. It is the same in every cell. A cell restores the clean output at one position: of one block for the residual
stream, of a window of blocks around the layer for attention and MLP. Its value is the mean over samples of the
target's probability.
"""

from collections.abc import AsyncGenerator, Iterator

import numpy as np
import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Answer, Progress
from ..questions.causal_tracing import (
    CausalTracing,
    Cell,
    Corruption,
    Counterfactual,
    ExplicitNoise,
    GaussianCorruption,
    RestorationGrid,
)
from ..questions.images import sight_of
from ..questions.places import LAYERLESS, PAIRWISE, Component
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .opening import Clean
from .prediction import numbers


async def parts(
    question: TraceQuestion, method: CausalTracing, session: Session, clean: Clean
) -> AsyncGenerator[Answer, None]:
    """The corrupted prediction, then the grids row by row with the progress."""
    changes, deviation = await _corruptions(method, session)
    edits = [PlacedEdit(Component.TOKEN_EMBEDDING, 0, method.subject, None, change) for change in changes]
    grid = list(method.cells(session.layers))
    yield Progress(0, len(grid) * len(edits), runs=True)
    corruptions = [Base.of(question.prompt, edit, len(edits)) for edit in edits]
    corrupted = await session.corrupted(corruptions, clean.state, read=clean.position)
    baseline = await session.read(corrupted, Reading(clean.position, clean.targets))
    yield _corruption(method, baseline, deviation)
    async for part in _grids(method, grid, session, clean, corrupted, baseline):
        yield part


def announced(method: CausalTracing) -> Corruption:
    """What a dry run says beside the cost: the positions that would be corrupted."""
    nothing = np.zeros(0, np.float32)
    return Corruption(nothing, nothing, nothing, method.subject, 0.0, None)


async def _grids(
    method: CausalTracing,
    grid: list[Cell],
    session: Session,
    clean: Clean,
    corrupted: list[State],
    baseline: list[Result],
) -> AsyncGenerator[Answer, None]:
    reading, sight = Reading(clean.position, clean.targets), sight_of(clean.state.image)
    restored = [Capture(one.component, one.layer, one.positions) for one in method.restored(session.layers)]
    found = await session.values(clean.state, restored)
    values = {(one.component, one.layer): value for one, value in zip(restored, found, strict=True)}
    row_of = {position: number for number, position in enumerate(method.positions)}

    def runs() -> Iterator[Run]:
        for cell in grid:
            if method.matters(cell, clean.position, sight):
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
            await results.take(len(corrupted)) if method.matters(cell, clean.position, sight) else baseline
            for cell in row
        ]
        start += len(row)
        done += len(row) * len(corrupted)
        yield _grid_row(head, row, outcome, per_sample=method.per_sample)
        yield Progress(done, total, runs=True)


def _restoration(cell: Cell, layer: int, clean: Tensor, row: int) -> PlacedEdit:
    """Sets one position of one layer to its clean value. Scores and patterns have positions on their second axis."""
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


async def _corruptions(method: CausalTracing, session: Session) -> tuple[list[Change], float]:
    """How each sample changes the subject's embeddings, and the standard deviation of the noise (0: none is drawn)."""
    match method.corruption:
        case Counterfactual(prompt):
            (other,) = await session.states([Base.of(prompt)])
            return [Change("set", other.embedding[list(method.subject)])], 0.0
        case ExplicitNoise(values):
            noise, deviation = torch.from_numpy(np.array(values)), 0.0
        case GaussianCorruption() as gaussian:
            deviation = gaussian.standard_deviation or 0.0
            if gaussian.standard_deviation is None:
                deviation = gaussian.deviations * session.engine.embedding_deviation()
            shape = (gaussian.samples, len(method.subject), session.decoder.hidden_size)
            noise = torch.from_numpy(np.random.RandomState(gaussian.seed).randn(*shape) * deviation)
    return [Change("set" if method.replace else "add", values) for values in noise], deviation
