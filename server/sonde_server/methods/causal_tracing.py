"""Causal tracing: corrupt the subject, restore one clean state at a time.

Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT" (2022, arXiv 2202.05262),
section 2.1, in the exact form of its published script: noise from numpy's RandomState(seed), drawn once as
[samples, corrupted positions, D] in float64, times a standard deviation, added to the output of the token
embedding, the same in every cell. A cell restores the clean output at one position: of one block for the
residual stream, of a window of blocks around the layer for attention and MLP. Its value is the mean over
samples of the target's probability.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..engine import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from ..questions.answers import Answer, Context, Corruption, Cost, Progress, RestorationGrid
from ..questions.causal_tracing import CausalTracing, Counterfactual, ExplicitNoise
from ..questions.extents import extent_of, reread
from ..questions.places import LAYERLESS, PAIRWISE, Component
from ..questions.prompts import Target
from ..questions.traces import TraceQuestion
from ..sharing.session import Session
from .prediction import attention_for, numbers, predict

WINDOWED = (Component.MLP_OUT, Component.ATTENTION_OUT)


@dataclass(frozen=True, slots=True)
class Cell:
    """One state, or a window of them, that is restored."""

    component: Component
    position: int
    layer: int
    restored: tuple[int, ...]


def window(layer: int, width: int, layers: int) -> tuple[int, ...]:
    """The layers that are restored around `layer`."""
    return tuple(range(max(0, layer - width // 2), min(layers, layer + (width + 1) // 2)))


def cells(method: CausalTracing, layers: int) -> list[Cell]:
    """Every cell of the grids, component by component, position by position."""
    result = []
    for component in method.components:
        for position in method.positions:
            for layer in (0,) if component in LAYERLESS else method.layers:
                windowed = component in WINDOWED
                restored = window(layer, method.window, layers) if windowed else (layer,)
                result.append(Cell(component, position, layer, restored))
    return result


def matters(cell: Cell, method: CausalTracing, read: int) -> bool:
    """Whether a restoration can change what is read: not before the corruption, not after the reading."""
    if cell.component is Component.TOKEN_EMBEDDING and cell.position not in method.subject:
        return False
    if cell.component in (Component.FINAL_NORM, Component.LOGITS):
        return cell.position == read
    return min(method.subject) <= cell.position <= read


def answer(question: TraceQuestion, method: CausalTracing, session: Session) -> Iterator[Answer]:
    """Context, the corrupted prediction, then the grids row by row with the progress."""
    tokens, position = question.prompt.tokens, question.position
    grid = cells(method, session.engine.layers)
    noise, deviation = _noise(method, session)
    samples = len(noise)
    cost = _cost(question, method, grid, samples, session)
    attention = attention_for(method.components)
    if question.dry_run:
        yield Context(tokens, question.targets, position, None, cost, attention)
        return
    clean = session.states([Base(tokens)], read=position)[0]
    targets, prediction = predict(session, clean, question.targets, position, question.top_k)
    yield Context(tokens, targets, position, prediction, cost, attention)
    yield Progress(0, len(grid) * samples)
    corruptions = [Base(tokens, edit, samples) for edit in _corruptions(method, noise, session)]
    corrupted = session.corrupted(corruptions, read=position)
    baseline = session.read(corrupted, Reading(position, targets))
    yield _corruption(method, baseline, deviation)
    yield from _grids(question, method, session, clean, corrupted, baseline, targets)


def _grids(
    question: TraceQuestion,
    method: CausalTracing,
    session: Session,
    clean: State,
    corrupted: list[State],
    baseline: list[Result],
    targets: tuple[Target, ...],
) -> Iterator[Answer]:
    grid = cells(method, session.engine.layers)
    reading = Reading(question.position, targets)
    restored = _restored(method, grid)
    values = {(one.component, one.layer): value
              for one, value in zip(restored, session.values(clean, restored), strict=True)}  # fmt: skip
    row_of = {position: number for number, position in enumerate(method.positions)}

    def runs() -> Iterator[Run]:
        for cell in grid:
            if matters(cell, method, question.position):
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
            list(islice(results, len(corrupted))) if matters(cell, method, question.position) else baseline
            for cell in row
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
        factor = 3.0 if corruption.deviations is None else corruption.deviations
        deviation = factor * session.engine.embedding_deviation()
    shape = (corruption.samples, len(method.subject), session.engine.decoder.hidden_size)
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


def _restored(method: CausalTracing, grid: list[Cell]) -> list[Capture]:
    """The clean run's values, [positions, ...], of every component and layer that is restored."""
    places = sorted({(cell.component, layer) for cell in grid for layer in cell.restored})
    return [Capture(component, layer, method.positions) for component, layer in places]


def _cost(question: TraceQuestion, method: CausalTracing, grid: list[Cell], samples: int, session: Session) -> Cost:
    engine, tokens = session.engine, len(question.prompt.tokens)
    layers = engine.layers
    work = tokens * layers + samples * (tokens - min(method.subject)) * layers
    work += reread(_restored(method, grid), tokens, layers)
    if isinstance(method.corruption, Counterfactual):
        work += tokens * layers
    nothing = Change("multiply", 1.0)
    for cell in grid:
        if matters(cell, method, question.position):
            edits = [PlacedEdit(cell.component, layer, (cell.position,), None, nothing) for layer in cell.restored]
            work += samples * extent_of(edits, (), question.position, tokens, layers).token_layers
    runs = samples * (len(grid) + 1)
    columns = max(1, len(question.targets)) * (3 + (samples if method.per_sample else 0))
    return Cost(
        runs,
        work,
        (runs + 1 + isinstance(method.corruption, Counterfactual)) * tokens * layers,
        4 * len(grid) * columns,
    )
