"""Causal tracing: what is corrupted, by what, and what is restored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sonde.v1 import inspection_pb2 as pb

from ..questions.causal_tracing import (
    DEFAULT_COMPONENTS,
    DEFAULT_DEVIATIONS,
    DEFAULT_SAMPLES,
    DEFAULT_SEED,
    DEFAULT_WINDOW,
    CausalTracing,
    Corruption,
    Counterfactual,
    ExplicitNoise,
    GaussianCorruption,
    RestorationGrid,
)
from ..questions.places import Component
from ..questions.prompts import Prompt, differing
from .fields import MOST_NUMBERS, Reader
from .names import find_text, part_of, read_position_list, read_rows, union
from .parts import arrays, row_bytes, rows, spans
from .prompts import check_alike, read_source
from .sites import read_components
from .tensors import decode_tensor, encode_floats

CorruptedBy = GaussianCorruption | ExplicitNoise | Counterfactual


def read_causal_tracing(
    message: pb.CausalTracing,
    path: str,
    prompt: Prompt | None,
    sources: Sequence[pb.Prompt] | None,
    targets: int,
    reader: Reader,
) -> CausalTracing | None:
    """The question; None where its corruption is faulty. `sources`: those of a case, maybe the counterfactual."""
    if message.WhichOneof("corruption") == "counterfactual":
        corruption: CorruptedBy | None
        corruption, subject = _read_counterfactual(message, path, prompt, sources, reader)
    else:
        subject = _read_subject(message, path, prompt, reader)
        corruption = _read_noise(message, path, len(subject), reader)
    components = _read_components(message, f"{path}.components", reader)
    window = DEFAULT_WINDOW
    if message.HasField("window"):
        window = reader.at_least_one(message.window, f"{path}.window")
    layers = reader.layers(message.layers, f"{path}.layers")
    positions, rows = _read_positions(message, path, prompt, subject, reader)
    if corruption is None:
        return None
    tracing = CausalTracing(
        corruption,
        message.replace,
        subject,
        components,
        window,
        layers or tuple(range(reader.model.layers)),
        positions,
        message.per_sample,
        rows,
    )
    if tracing.numbers_per_cell(targets) > MOST_NUMBERS:
        reader.problems.add(
            f"{path}.per_sample",
            f"expected at most {MOST_NUMBERS} samples x targets in a cell, got {corruption.samples} x {targets}",
        )
    return tracing


def _read_counterfactual(
    message: pb.CausalTracing,
    path: str,
    prompt: Prompt | None,
    sources: Sequence[pb.Prompt] | None,
    reader: Reader,
) -> tuple[Counterfactual | None, tuple[int, ...]]:
    problems = reader.problems
    if (subject := message.WhichOneof("subject")) is not None:
        problems.add(
            f"{path}.{subject}",
            "expected no subject with a counterfactual, because the subject is where the two prompts differ",
        )
    if message.replace:
        problems.add(
            f"{path}.replace",
            "expected replace to be unset with a counterfactual, which always replaces the embeddings",
        )
    other, field = read_source(message.counterfactual, f"{path}.counterfactual", sources, reader)
    if other is None or prompt is None:
        return None, ()
    if not check_alike(other, prompt, field, reader):
        return None, ()
    places = differing(prompt, other)
    if not places:
        problems.add(field, "expected a prompt that differs, got the prompt itself")
    return Counterfactual(other), places


def _read_subject(message: pb.CausalTracing, path: str, prompt: Prompt | None, reader: Reader) -> tuple[int, ...]:
    match message.WhichOneof("subject"):
        case "subject_text":
            field = f"{path}.subject_text"
            if prompt is None:
                return ()
            return find_text(message.subject_text, prompt, field, reader, instead="subject_positions")
        case "subject_positions":
            field = f"{path}.subject_positions.positions"
            return read_position_list(message.subject_positions, prompt, field, reader)
        case "named_subject":
            return (read_rows([message.named_subject], prompt, f"{path}.named_subject", reader, filled=True) or ((),))[
                0
            ]
        case _:
            reader.problems.add(
                f"{path}.subject", "expected a subject (subject_text, subject_positions or named_subject), got none"
            )
            return ()


def _read_positions(
    message: pb.CausalTracing, path: str, prompt: Prompt | None, subject: tuple[int, ...], reader: Reader
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...] | None]:
    """The positions of the grids, and the rows of a reduction where each position is not one of its own."""
    tokens = 0 if prompt is None else len(prompt.tokens)
    if message.positions and message.named_positions:
        reader.problems.add(f"{path}.named_positions", "expected one of positions and named_positions, got both")
    if message.positions:
        return reader.positions(message.positions, tokens or None, f"{path}.positions"), None
    if message.named_positions:
        rows = read_rows(message.named_positions, prompt, f"{path}.named_positions", reader) or ()
    elif reader.reduced:
        span = tuple(sorted(subject))
        rows = (*(part_of(span, part, tokens) for part in _ROLES), (tokens - 1,))
    else:
        return tuple(range(tokens)), None
    return union(rows), rows if reader.reduced else None


# The roles of positions in figure 2 of the paper, before the last.
_ROLES = (
    pb.SPAN_PART_FIRST,
    pb.SPAN_PART_MIDDLE,
    pb.SPAN_PART_LAST,
    pb.SPAN_PART_NEXT,
    pb.SPAN_PART_FURTHER,
)


def _read_noise(message: pb.CausalTracing, path: str, corrupted: int, reader: Reader) -> CorruptedBy | None:
    if message.WhichOneof("corruption") != "noise":
        return _read_gaussian(message.gaussian, f"{path}.gaussian", reader)
    values = decode_tensor(message.noise, f"{path}.noise", reader)
    if values is None or not corrupted:
        return None
    wanted = (corrupted, reader.model.hidden_size)
    if values.ndim != 3 or values.shape[0] < 1 or values.shape[1:] != wanted:
        reader.problems.add(
            f"{path}.noise.shape",
            f"expected [samples, {wanted[0]}, {wanted[1]}] (samples x corrupted positions x hidden size) with at least "
            f"one sample, got {list(values.shape)}",
        )
        return None
    return ExplicitNoise(values)


def _read_gaussian(message: pb.CausalTracing.Gaussian, path: str, reader: Reader) -> GaussianCorruption:
    scale = message.WhichOneof("scale")
    deviations = message.deviations if scale == "deviations" else None
    standard_deviation = message.standard_deviation if scale == "standard_deviation" else None
    for name, value in (("deviations", deviations), ("standard_deviation", standard_deviation)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            reader.problems.add(f"{path}.{name}", f"expected a finite number of 0 or more, got {value}")
    samples = DEFAULT_SAMPLES
    if message.HasField("samples"):
        samples = reader.at_least_one(message.samples, f"{path}.samples")
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else DEFAULT_SEED
    return GaussianCorruption(
        DEFAULT_DEVIATIONS if deviations is None else deviations, standard_deviation, samples, seed
    )


def _read_components(message: pb.CausalTracing, path: str, reader: Reader) -> tuple[Component, ...]:
    if not message.components:
        for component in DEFAULT_COMPONENTS:
            if reason := reader.model.unavailable.get(component):
                reader.problems.refuse(
                    path, f"{component.name}, which is restored by default: {reason}; list other components"
                )
        return DEFAULT_COMPONENTS
    return read_components(message.components, path, reader)


def encode_corruption(corruption: Corruption) -> pb.Corruption:
    """The corrupted runs."""
    message = pb.Corruption(
        probabilities=corruption.probabilities.tolist(),
        deviations=corruption.deviations.tolist(),
        positions=corruption.positions,
        noise_deviation=corruption.noise_deviation,
        logits=corruption.logits.tolist(),
    )
    if corruption.sample_probabilities is not None:
        message.sample_probabilities.CopyFrom(encode_floats(corruption.sample_probabilities))
    return message


def encode_grid(part: RestorationGrid) -> Iterator[pb.RestorationGrid]:
    """As many positions at a time as fit into a message; where one alone does not fit, as many of its layers."""
    positions, layers = len(part.positions), len(part.layers)
    for start, stop in spans(positions, row_bytes(part, positions)):
        some = rows(part, start, stop, positions=part.positions[start:stop], counts=part.counts[start:stop])
        if layers < 2 or stop - start > 1:
            yield _encode_cells(some)
            continue
        for low, high in spans(layers, row_bytes(some, layers)):
            cut: dict[str, Any] = {name: values[:, low:high] for name, values in arrays(some)}
            yield _encode_cells(replace(some, layers=part.layers[low:high], **cut))


def _encode_cells(grid: RestorationGrid) -> pb.RestorationGrid:
    message = pb.RestorationGrid(
        component=pb.Component.ValueType(grid.component),
        positions=grid.positions,
        layers=grid.layers,
        probabilities=encode_floats(grid.probabilities),
        deviations=encode_floats(grid.deviations),
        logits=encode_floats(grid.logits),
        counts=grid.counts,
    )
    if grid.sample_probabilities is not None:
        message.sample_probabilities.CopyFrom(encode_floats(grid.sample_probabilities))
    return message
