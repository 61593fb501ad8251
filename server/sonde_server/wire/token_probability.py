"""The logit lens: the question, and what is read at every depth."""

from collections.abc import Iterator

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.answers import Floats, Integers
from ..questions.prompts import Metric, Prompt
from ..questions.token_probability import LayerReadings, TokenProbability
from .fields import MOST_NUMBERS, Reader
from .names import read_rows, union
from .parts import row_bytes, rows, spans
from .prompts import Texts, encode_top_tokens, read_metric
from .tensors import encode_floats, encode_integers


def read_token_probability(
    message: pb.TokenProbability, path: str, prompt: Prompt | None, targets: int, reader: Reader
) -> TokenProbability:
    """The question."""
    tokens = 0 if prompt is None else len(prompt.tokens)
    if message.gradient_norms and targets * tokens > MOST_NUMBERS:
        reader.problems.add(
            f"{path}.gradient_norms",
            f"expected at most {MOST_NUMBERS} positions x targets, got {tokens} x {targets}",
        )
    metric = read_metric(message.metric, Metric.PROBABILITY, f"{path}.metric", reader)
    return TokenProbability(message.gradient_norms, metric, _read_rows(message, path, prompt, reader))


def _read_rows(
    message: pb.TokenProbability, path: str, prompt: Prompt | None, reader: Reader
) -> tuple[tuple[int, ...], ...] | None:
    """The positions where the stream is read; None where none are listed. Outside a reduction each comes once."""
    if message.positions and message.named_positions:
        reader.problems.add(f"{path}.named_positions", "expected one of positions and named_positions, got both")
    if message.named_positions:
        found = read_rows(message.named_positions, prompt, f"{path}.named_positions", reader) or ()
        return found if reader.reduced else tuple((position,) for position in union(found))
    positions = reader.positions(message.positions, None if prompt is None else len(prompt.tokens), f"{path}.positions")
    return tuple((position,) for position in positions) or None


def encode_layers(part: LayerReadings, texts: Texts) -> Iterator[pb.LayerReadings]:
    """All depths, as many at a time as fit into a message."""
    count = len(part.depths)
    for start, stop in spans(count, row_bytes(part, count)):
        yield _encode_depths(rows(part, start, stop, depths=part.depths[start:stop]), texts)


def _encode_depths(layers: LayerReadings, texts: Texts) -> pb.LayerReadings:
    message = pb.LayerReadings(
        depths=layers.depths,
        log_probabilities=encode_floats(layers.log_probabilities),
        logits=encode_floats(layers.logits),
        ranks=_encode_ranks(layers.ranks),
        kl_divergences=encode_floats(layers.kl_divergences),
        positions=layers.positions,
        position=layers.position,
        row_count=layers.count,
        token_texts=texts.new(layers.top_tokens),
    )
    encode_top_tokens(layers, message)
    if layers.probabilities is not None:
        message.probabilities.CopyFrom(encode_floats(layers.probabilities))
    if layers.gradient_norms is not None:
        message.gradient_norms.CopyFrom(encode_floats(layers.gradient_norms))
    return message


def _encode_ranks(ranks: Integers | Floats) -> pb.Tensor:
    """Ranks are whole numbers, but their statistics are not."""
    if np.issubdtype(ranks.dtype, np.floating):
        return encode_floats(ranks.astype(np.float32, copy=False))
    return encode_integers(ranks.astype(np.int32, copy=False))
