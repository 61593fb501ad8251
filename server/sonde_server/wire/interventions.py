"""Interventions: what is read in every run, and its values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.interventions import Readings, Readout
from ..questions.prompts import Prompt
from .activations import read_encoding, read_pooling
from .fields import Reader
from .generation import read_generation
from .parts import arrays, row_bytes, rows, spans
from .prompts import encode_top_tokens, read_position, read_prompt, read_targets
from .sites import read_sites
from .tensors import encode_floats, encode_integers


def read_sources(messages: Sequence[pb.Prompt], reader: Reader) -> list[Prompt | None]:
    """The other prompts, whose values patches take."""
    # Each is a run of its own.
    if not reader.runs(len(messages), reader.sources):
        return []
    return [read_prompt(source, f"{reader.sources}[{i}]", reader) for i, source in enumerate(messages)]


def read_readout(
    message: pb.Readout, prompt: Prompt | None, targeted: Sequence[pb.Target], reader: Reader
) -> Readout | None:
    """What is read in every run, of the targets of the request or of a case."""
    tokens = None if prompt is None else len(prompt.tokens)
    targets = read_targets(targeted, reader.targets, reader)
    position = read_position(message, prompt, "readout.", reader)
    top_k = reader.top_k(message.top_k, "readout.top_k")
    sites = read_sites(message.activations, "readout.activations", prompt, reader)
    encoding = read_encoding(message.activations_data_type, "readout.activations_data_type", reader)
    pooling = read_pooling(message.pooling, sites, "readout.pooling", reader)
    generation = None
    if message.HasField("generation"):
        generation = read_generation(message.generation, "readout.generation", tokens, reader)
    if position is None:
        return None
    return Readout(targets, position, top_k, message.kl_divergence, sites, generation, encoding, pooling)


def cut_readings(part: Readings) -> Iterator[Readings]:
    """As many runs at a time as fit into a message."""
    count = len(part.log_probabilities)
    for start, stop in spans(count, row_bytes(part, count)):
        yield rows(part, start, stop, offset=part.offset + start)


def join_readings(parts: Sequence[Readings]) -> Readings:
    """Runs that follow one another, in one part."""
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name, _ in arrays(parts[0])
    }
    return replace(parts[0], **joined)


def encode_readings(readings: Readings, texts: Mapping[int, str]) -> pb.Readings:
    """Some runs of the plan, with the texts of the tokens that are new."""
    message = pb.Readings(
        offset=readings.offset,
        count=len(readings.log_probabilities),
        log_probabilities=encode_floats(readings.log_probabilities),
        logits=encode_floats(readings.logits),
        edit_norms=encode_floats(readings.edit_norms),
        token_texts=dict(texts),
    )
    encode_top_tokens(readings, message)
    if readings.probabilities is not None:
        message.probabilities.CopyFrom(encode_floats(readings.probabilities))
    if readings.draws is not None:
        message.draws.CopyFrom(encode_integers(readings.draws))
    if readings.kl_divergences is not None:
        message.kl_divergences.CopyFrom(encode_floats(readings.kl_divergences))
    return message
