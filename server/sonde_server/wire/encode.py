"""Answers to streams of messages: small parts joined, large ones cut, the progress sent along."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.activations import Activation, LargestActivations
from ..questions.causal_scrubbing import ExampleReadings
from ..questions.generation import Generated
from ..questions.interventions import Readings
from ..questions.places import ModelDescription
from .activations import encode_activation, encode_largest
from .context import encode_context
from .generation import Continuations, encode_generated
from .interventions import cut_readings, encode_readings, join_readings
from .model import encode_model
from .parts import MESSAGE_BYTES, row_bytes
from .prompts import Texts
from .traces import encode_part

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

__all__ = ["encode_intervene", "encode_model", "encode_trace"]

# An answer of up to this many runs is one message, however long it takes.
SMALL_RUNS = 16
PROGRESS_SECONDS = 0.5
# What a message holds beside its parts: the progress, and the frames of joined readings.
OVERHEAD = 1024

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
    stream = _Stream(pb.TraceResponse, Texts(vocabulary), clock)
    for answer in parts:
        yield from stream.turn_to(answer)
        part = _own(answer)
        messages = encode_part(part, stream.texts)
        if messages is None:
            yield from stream.add_common(part, model, version)
        else:
            yield from stream.add_all(messages)
    yield from stream.flush()


def encode_intervene(
    parts: Iterable[answers.Answer],
    model: ModelDescription,
    vocabulary: "Vocabulary",
    version: str,
    clock: Clock = time.monotonic,
) -> Iterator[pb.InterveneResponse]:
    """The messages of an Intervene."""
    stream = _Stream(pb.InterveneResponse, Texts(vocabulary), clock)
    continuations = Continuations(vocabulary)
    for answer in parts:
        yield from stream.turn_to(answer)
        part = _own(answer)
        match part:
            case Readings():
                for some in cut_readings(part):
                    yield from stream.add_readings(some)
            case ExampleReadings():
                for some in cut_readings(part.readings):
                    texts = stream.texts.new(some.top_tokens)
                    yield from stream.add(pb.InterveneResponse(examples=encode_readings(some, texts)))
            case Generated():
                generated = encode_generated(part, stream.texts, continuations)
                yield from stream.add_all(pb.InterveneResponse(generated=[one]) for one in generated)
                if part is answer:
                    # A caller who reads along sees each token as soon as it is there.
                    yield from stream.flush()
            case _:
                if isinstance(part, answers.Context):
                    continuations = Continuations(vocabulary)
                    continuations.begin(part.tokens)
                yield from stream.add_common(part, model, version)
    yield from stream.flush()


def _own(answer: answers.Answer) -> answers.Answer:
    """What a part says, whichever cases it is about."""
    return answer.part if isinstance(answer, answers.CaseAnswer | answers.ReducedAnswer) else answer


class _Stream(Generic[Message]):
    """The message that is being filled. Readings are kept aside until it is sent, since they become one.

    A message is about one case, or one statistic of a group.
    """

    def __init__(self, kind: type[Message], texts: Texts, clock: Clock) -> None:
        self.texts = texts
        self._kind: type[Message] = kind
        self._clock = clock
        self._about: Hashable = None
        self._frame: Message = kind()
        self._sent_at = self._results_at = clock()
        self._begin()

    def _begin(self) -> None:
        self.message: Message = self._kind()
        self.message.CopyFrom(self._frame)
        self._size = 0
        self._readings: list[Readings] = []
        self._new_texts: dict[int, str] = {}
        self._has_results = False

    def turn_to(self, answer: answers.Answer) -> Iterator[Message]:
        """Sends what there is about another case than this part is about; progress is about all of them."""
        match answer:
            case answers.CaseAnswer(case=case):
                about: Hashable = case
            case answers.ReducedAnswer():
                about = answer.group, answer.statistic, answer.first_case
            case _:
                return
        if about == self._about:
            return
        if self._size or self._readings:
            yield self._send()
        self._about = about
        self.texts.begin()
        self._frame = self._kind()
        if isinstance(answer, answers.CaseAnswer):
            self._frame.case_index = answer.case
        else:
            self._frame.reduction.CopyFrom(_reduction(answer))
        progress = self.message.progress if self.message.HasField("progress") else None
        self._begin()
        if progress is not None:
            self.message.progress.CopyFrom(progress)

    def add_common(self, part: answers.Answer, model: ModelDescription, version: str) -> Iterator[Message]:
        """Adds a part that both kinds of answer have. Raises TypeError for any other."""
        match part:
            case answers.Context():
                yield from self.add(self._kind(context=encode_context(part, self.texts, model, version)))
            case answers.Progress():
                yield from self._advance(part)
            case Activation():
                yield from self.add_all(self._kind(activations=[some]) for some in encode_activation(part))
            case LargestActivations():
                yield from self.add_all(self._kind(largest=[some]) for some in encode_largest(part))
            case _:
                raise TypeError(f"a {self._kind.__name__} has no {type(part).__name__}")

    def add_all(self, parts: Iterable[Message]) -> Iterator[Message]:
        """Adds parts, one after the other."""
        for part in parts:
            yield from self.add(part)

    def add(self, part: Message) -> Iterator[Message]:
        """Adds a part. The message before is sent first if both do not fit, or if it has this part's only place."""
        size = part.ByteSize()
        held = {field.name for field, _ in self.message.ListFields()}
        taken = any(field.has_presence and field.name in held for field, _ in part.ListFields())
        if taken or self._size + size > MESSAGE_BYTES - OVERHEAD:
            yield self._send()
        self.message.MergeFrom(part)
        self._size += size
        self._has_results = self._has_results or not part.HasField("context")

    def add_readings(self, part: Readings) -> Iterator[Message]:
        """Adds runs to those that the message has, if they follow them directly."""
        count = len(part.log_probabilities)
        size = count * row_bytes(part, count)
        last = self._readings[-1] if self._readings else None
        gap = last is not None and part.offset != last.offset + len(last.log_probabilities)
        if gap or self._size + size > MESSAGE_BYTES - OVERHEAD:
            yield self._send()
        new = self.texts.new(part.top_tokens)
        self._readings.append(part)
        self._has_results = True
        self._new_texts.update(new)
        # Texts that are longer than the estimate allows for count in full.
        self._size += max(size, sum(len(text.encode()) + 16 for text in new.values()) + size // 2)

    def _advance(self, progress: answers.Progress) -> Iterator[Message]:
        """Note the progress, and send what there is if nothing was sent for a while, or no results."""
        told = pb.Progress(
            done=progress.done, total=progress.total, cases_done=progress.cases_done, cases=progress.cases
        )
        self.message.progress.CopyFrom(told)
        since = self._results_at if self._has_results else self._sent_at
        if progress.total > SMALL_RUNS and self._clock() - since >= PROGRESS_SECONDS:
            yield self._send()

    def flush(self) -> Iterator[Message]:
        """Sends what there is."""
        if self._size or self._readings or self.message.HasField("progress"):
            yield self._send()

    def _send(self) -> Message:
        message: Message = self.message
        if self._readings and isinstance(message, pb.InterveneResponse):
            message.readings.CopyFrom(encode_readings(join_readings(self._readings), self._new_texts))
        self._sent_at = self._clock()
        if self._has_results:
            self._results_at = self._sent_at
        self._begin()
        return message


def _reduction(answer: answers.ReducedAnswer) -> pb.ReductionPart:
    return pb.ReductionPart(
        group=answer.group,
        statistic=pb.Statistic.ValueType(answer.statistic),
        first_case=answer.first_case,
        cases=answer.cases,
        count=answer.count,
    )
