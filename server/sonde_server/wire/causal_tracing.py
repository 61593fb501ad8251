"""Causal tracing: what is corrupted, by what, and what is restored."""

import math

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.causal_tracing import CausalTracing, Counterfactual, ExplicitNoise, GaussianCorruption
from ..questions.costs import samples_of
from ..questions.places import LAYERLESS, Component
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, MOST_VALUES_TOGETHER, Reader
from .prompts import read_prompt
from .sites import read_component
from .tensors import decode_tensor, encode_floats

DEFAULT_COMPONENTS = (Component.RESIDUAL_POST, Component.MLP_OUT, Component.ATTENTION_OUT)
DEFAULT_WINDOW = 10
DEFAULT_SAMPLES = 10
DEFAULT_DEVIATIONS = 3.0

Corruption = GaussianCorruption | ExplicitNoise | Counterfactual


def read_causal_tracing(
    message: pb.CausalTracing, path: str, prompt: Prompt | None, targets: int, reader: Reader
) -> CausalTracing | None:
    """The question of a causal trace; None where its corruption is faulty."""
    tokens = None if prompt is None else len(prompt.tokens)
    if message.WhichOneof("corruption") == "counterfactual":
        corruption: Corruption | None
        corruption, subject = _read_counterfactual(message, path, prompt, reader)
    else:
        subject = _read_subject(message, path, prompt, reader)
        corruption = _read_noise(message, path, len(subject), reader)
    components = _read_components(message, f"{path}.components", reader)
    window = DEFAULT_WINDOW
    if message.HasField("window"):
        window = reader.at_least_one(message.window, f"{path}.window")
    layers = reader.layers(message.layers, f"{path}.layers")
    positions = reader.positions(message.positions, tokens, f"{path}.positions")
    if corruption is None:
        return None
    tracing = CausalTracing(
        corruption,
        message.replace,
        subject,
        components,
        window,
        layers or tuple(range(reader.model.layers)),
        positions or tuple(range(tokens or 0)),
        message.per_sample,
    )
    _check_size(tracing, path, targets, reader)
    return tracing


def _read_counterfactual(
    message: pb.CausalTracing, path: str, prompt: Prompt | None, reader: Reader
) -> tuple[Counterfactual | None, tuple[int, ...]]:
    problems = reader.problems
    if (subject := message.WhichOneof("subject")) is not None:
        problems.add(f"{path}.{subject}", "with a counterfactual the subject is where the prompts differ; name none")
    if message.replace:
        problems.add(f"{path}.replace", "a counterfactual always takes the embeddings' place; leave it unset")
    field = f"{path}.counterfactual"
    other = read_prompt(message.counterfactual, field, reader)
    if other is None or prompt is None:
        return None, ()
    if len(other.tokens) != len(prompt.tokens):
        problems.add(field, f"it has {len(other.tokens)} tokens and the prompt {len(prompt.tokens)}; give as many")
        return None, ()
    pairs = zip(prompt.tokens, other.tokens, strict=True)
    differing = tuple(i for i, (token, replacement) in enumerate(pairs) if token != replacement)
    if not differing:
        problems.add(field, "it is the prompt itself; give one that differs")
    return Counterfactual(other), differing


def _read_subject(message: pb.CausalTracing, path: str, prompt: Prompt | None, reader: Reader) -> tuple[int, ...]:
    match message.WhichOneof("subject"):
        case "subject_text":
            return () if prompt is None else _find_subject(message.subject_text, f"{path}.subject_text", prompt, reader)
        case "subject_positions":
            field = f"{path}.subject_positions.positions"
            if not message.subject_positions.positions:
                reader.problems.add(field, "no position was given; give at least one")
            tokens = None if prompt is None else len(prompt.tokens)
            return reader.positions(message.subject_positions.positions, tokens, field)
        case _:
            reader.problems.add(f"{path}.subject", "the subject is missing; give subject_text or subject_positions")
            return ()


def _find_subject(subject: str, path: str, prompt: Prompt, reader: Reader) -> tuple[int, ...]:
    """The positions of the tokens that make up the first occurrence of a text in the prompt."""
    problems = reader.problems
    shown = repr(subject if len(subject) <= 80 else subject[:80] + "...")
    if not subject:
        problems.add(path, "it is empty; give a part of the prompt's text")
    elif prompt.text is None:
        problems.add(path, "the prompt was given as token ids; give subject_positions")
    elif not prompt.offsets:
        problems.add(path, "this model's tokenizer does not say where its tokens lie; give subject_positions")
    elif (start := prompt.text.find(subject)) < 0:
        problems.add(path, f"{shown} is not in the prompt; give a part of its text, exactly as it stands there")
    else:
        return _whole_tokens(prompt, start, start + len(subject), path, reader)
    return ()


def _whole_tokens(prompt: Prompt, start: int, end: int, path: str, reader: Reader) -> tuple[int, ...]:
    """The tokens of the prompt's text from `start` to `end`, which is refused where it takes a part of a token.

    Spaces at either end are not counted: whether a token includes those around it differs between vocabularies.
    """
    text = prompt.text
    assert text is not None
    subject = text[start:end]
    first, last = start, end
    if subject.strip():
        first, last = end - len(subject.lstrip()), start + len(subject.rstrip())
    found = tuple(
        i
        for i, (a, b) in enumerate(prompt.offsets)
        if a < b and ((a < last and b > first) or (a >= start and b <= end))
    )
    shown = repr(subject if len(subject) <= 80 else subject[:80] + "...")
    if not found:
        reader.problems.add(path, f"no token overlaps {shown}; give a longer part of the prompt, or subject_positions")
    cut = [i for i in found if (text[prompt.offsets[i][0] : start] + text[end : prompt.offsets[i][1]]).strip()]
    if cut:
        tokens = " and of ".join(f"{reader.vocabulary.text(prompt.tokens[i])!r} (position {i})" for i in cut[:4])
        reader.problems.add(path, f"expected whole tokens; {shown} is part of {tokens}; or give subject_positions")
    return found


def _read_noise(message: pb.CausalTracing, path: str, corrupted: int, reader: Reader) -> Corruption | None:
    if message.WhichOneof("corruption") != "noise":
        return _read_gaussian(message.gaussian, f"{path}.gaussian", reader)
    values = decode_tensor(message.noise, f"{path}.noise", reader)
    if values is None or not corrupted:
        return None
    wanted = (corrupted, reader.model.hidden_size)
    if values.ndim != 3 or values.shape[0] < 1 or values.shape[1:] != wanted:
        reader.problems.add(
            f"{path}.noise.shape",
            f"{list(values.shape)} was given; give [samples, {wanted[0]}, {wanted[1]}], at least one sample of "
            "corrupted positions x hidden size",
        )
        return None
    return ExplicitNoise(values)


def _read_gaussian(message: pb.CausalTracing.Gaussian, path: str, reader: Reader) -> GaussianCorruption:
    scale = message.WhichOneof("scale")
    deviations = message.deviations if scale == "deviations" else None
    standard_deviation = message.standard_deviation if scale == "standard_deviation" else None
    for name, value in (("deviations", deviations), ("standard_deviation", standard_deviation)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            reader.problems.add(f"{path}.{name}", f"{value} was given; give a finite number of 0 or more")
    samples = DEFAULT_SAMPLES
    if message.HasField("samples"):
        samples = reader.at_least_one(message.samples, f"{path}.samples")
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    return GaussianCorruption(DEFAULT_DEVIATIONS if scale is None else deviations, standard_deviation, samples, seed)


def _read_components(message: pb.CausalTracing, path: str, reader: Reader) -> tuple[Component, ...]:
    if not message.components:
        for component in DEFAULT_COMPONENTS:
            if reason := reader.model.unavailable.get(component):
                reader.problems.refuse(path, f"{component.name}, of the default: {reason}; name others")
        return DEFAULT_COMPONENTS
    components: list[int | None] = []
    if not reader.listed(len(message.components), MOST_LISTED, path, "components"):
        return ()
    for i, number in enumerate(message.components):
        components.append(read_component(number, f"{path}[{i}]", reader))
    return tuple(Component(value) for value in reader.distinct(components, path, "component"))


def _check_size(tracing: CausalTracing, path: str, targets: int, reader: Reader) -> None:
    samples = samples_of(tracing)
    layers = sum(1 if component in LAYERLESS else len(tracing.layers) for component in tracing.components)
    cells = layers * len(tracing.positions)
    reader.runs((cells + 1) * samples, path)
    kept = samples if tracing.per_sample else 0
    if targets * (kept + 3) > MOST_VALUES_TOGETHER:
        reader.problems.add(
            f"{path}.per_sample",
            f"{samples} samples x {targets} targets are more than {MOST_VALUES_TOGETHER} in a cell; ask for fewer",
        )
    reader.answer(cells * targets * (kept + 3) * 4, path)


def encode_corruption(corruption: answers.Corruption) -> pb.Corruption:
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


def encode_grid(grid: answers.RestorationGrid) -> pb.RestorationGrid:
    """Some places of one component."""
    message = pb.RestorationGrid(
        component=pb.Component.ValueType(grid.component),
        positions=grid.positions,
        layers=grid.layers,
        probabilities=encode_floats(grid.probabilities),
        deviations=encode_floats(grid.deviations),
        logits=encode_floats(grid.logits),
    )
    if grid.sample_probabilities is not None:
        message.sample_probabilities.CopyFrom(encode_floats(grid.sample_probabilities))
    return message
