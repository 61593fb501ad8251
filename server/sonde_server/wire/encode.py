"""Answers to streams of messages: small parts joined, large ones cut, the progress sent along."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.places import ModelDescription
from .activations import encode_slice
from .attribution_patching import encode_attributions, encode_edges, encode_verified
from .causal_tracing import encode_corruption, encode_grid
from .context import encode_context
from .generation import Continuations, encode_generated
from .interventions import encode_readings
from .model import encode_model
from .parts import (
    MESSAGE_BYTES,
    cut_attributions,
    cut_edges,
    cut_grid,
    cut_layers,
    cut_readings,
    cut_values,
    join_readings,
    size_of,
)
from .token_probability import encode_layers

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

__all__ = ["encode_intervene", "encode_model", "encode_trace"]

# An answer of no more runs than this is one message, however long it takes.
SMALL_RUNS = 16
PROGRESS_SECONDS = 0.5

Message = TypeVar("Message", pb.TraceResponse, pb.InterveneResponse)
Clock = Callable[[], float]


def encode_trace(
    parts: Iterable[answers.Answer],
    model: ModelDescription,
    vocabulary: "Vocabulary",
    version: str,
    clock: Clock = time.monotonic,
) -> Iterator[pb.TraceResponse]:
    """The messages of a Trace."""
    texts = _Texts(vocabulary)
    stream = _Stream(pb.TraceResponse, clock)
    for part in parts:
        match part:
            case answers.Progress():
                yield from stream.advance(part)
            case answers.Context():
                yield from stream.add(pb.TraceResponse(context=encode_context(part, texts, model, version)))
            case answers.LayerReadings():
                for some in cut_layers(part):
                    layers = encode_layers(some, texts.new(some.top_tokens))
                    yield from stream.add(pb.TraceResponse(layers=layers), alone=stream.message.HasField("layers"))
            case _:
                for message in _trace_messages(part):
                    yield from stream.add(message)
    yield from stream.flush()


def _trace_messages(part: answers.Answer) -> Iterator[pb.TraceResponse]:
    """The parts of a trace that are cut and then simply follow upon each other."""
    match part:
        case answers.Corruption():
            yield pb.TraceResponse(corruption=encode_corruption(part))
        case answers.RestorationGrid():
            for grid in cut_grid(part):
                yield pb.TraceResponse(grids=[encode_grid(grid)])
        case answers.Attributions():
            for some in cut_attributions(part):
                yield pb.TraceResponse(attributions=[encode_attributions(some)])
        case answers.EdgeAttributions():
            for edges in cut_edges(part):
                yield pb.TraceResponse(edges=[encode_edges(edges)])
        case answers.VerifiedEffect():
            yield pb.TraceResponse(verified=[encode_verified(part)])
        case answers.Activation():
            for offset, values in cut_values(part.values):
                yield pb.TraceResponse(activations=[encode_slice(part, offset, values)])
        case _:
            raise TypeError(f"a trace has no {type(part).__name__}")


def encode_intervene(
    parts: Iterable[answers.Answer],
    model: ModelDescription,
    vocabulary: "Vocabulary",
    version: str,
    clock: Clock = time.monotonic,
) -> Iterator[pb.InterveneResponse]:
    """The messages of an Intervene."""
    texts = _Texts(vocabulary)
    stream = _Stream(pb.InterveneResponse, clock)
    said: Continuations | None = None
    for part in parts:
        match part:
            case answers.Context():
                yield from stream.add(pb.InterveneResponse(context=encode_context(part, texts, model, version)))
                said = Continuations(vocabulary, part.tokens)
            case answers.Progress():
                yield from stream.advance(part)
            case answers.Readings():
                for some in cut_readings(part):
                    yield from stream.add_readings(some, texts)
            case answers.Activation():
                for offset, values in cut_values(part.values):
                    yield from stream.add(pb.InterveneResponse(activations=[encode_slice(part, offset, values)]))
            case answers.Generated():
                assert said is not None
                for generated in encode_generated(part, texts, said):
                    yield from stream.add(pb.InterveneResponse(generated=[generated]))
                # Whoever reads along sees each token when it is there.
                yield from stream.flush()
            case _:
                raise TypeError(f"an intervention has no {type(part).__name__}")
    yield from stream.flush()


class _Texts(dict[int, str]):
    """Tokens' texts, looked up once each; `new` gives those that no reading of this stream had yet."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._sent: set[int] = set()

    def __missing__(self, token: int) -> str:
        text = self[token] = self._vocabulary.text(token)
        return text

    def new(self, tokens: answers.Integers) -> dict[int, str]:
        found = [token for token in np.unique(tokens).tolist() if token not in self._sent]
        self._sent.update(found)
        return {token: self[token] for token in found}


class _Stream(Generic[Message]):
    """The message in the making. Readings are kept aside until it goes, for they become one."""

    def __init__(self, kind: type[Message], clock: Clock) -> None:
        self._kind: type[Message] = kind
        self._clock = clock
        self._sent_at = clock()
        self._begin()

    def _begin(self) -> None:
        self.message: Message = self._kind()
        self._size = 0
        self._readings: list[answers.Readings] = []
        self._texts: dict[int, str] = {}

    def add(self, part: Message, *, alone: bool = False) -> Iterator[Message]:
        """Adds a part; the message before it goes first where both do not fit, or where it must stand `alone`."""
        size = part.ByteSize()
        if alone or self._size + size > MESSAGE_BYTES - _OVERHEAD:
            yield self._send()
        self.message.MergeFrom(part)
        self._size += size

    def add_readings(self, part: answers.Readings, texts: _Texts) -> Iterator[Message]:
        """Adds runs to those that the message has, where they follow upon them."""
        size = size_of(part)
        last = self._readings[-1] if self._readings else None
        gap = last is not None and part.offset != last.offset + len(last.log_probabilities)
        if gap or self._size + size > MESSAGE_BYTES - _OVERHEAD:
            yield self._send()
        new = texts.new(part.top_tokens)
        self._readings.append(part)
        self._texts.update(new)
        # Longer texts than the estimate allows for count in full.
        self._size += max(size, sum(len(text.encode()) + 16 for text in new.values()) + size // 2)

    def advance(self, progress: answers.Progress) -> Iterator[Message]:
        """Notes the progress, and sends what there is once in a while."""
        self.message.progress.CopyFrom(pb.Progress(done=progress.done, total=progress.total))
        if progress.done > SMALL_RUNS and self._clock() - self._sent_at >= PROGRESS_SECONDS:
            yield self._send()

    def flush(self) -> Iterator[Message]:
        """Sends what there is."""
        if self._size or self._readings or self.message.HasField("progress"):
            yield self._send()

    def _send(self) -> Message:
        message: Message = self.message
        if self._readings and isinstance(message, pb.InterveneResponse):
            message.readings.CopyFrom(encode_readings(join_readings(self._readings), self._texts))
        self._begin()
        self._sent_at = self._clock()
        return message


# What a message holds beside its parts: progress, and the frames of joined readings.
_OVERHEAD = 1024
