"""Requests that nobody would write: valid ones, mutated with the contract's descriptors at hand, and bytes at random.

A mutation knows what a field is: it sets numbers to the ends of their range, enumerations to values that do not exist,
repeats and drops parts of lists, moves a part of one request into another, fills what was empty, and swaps the
branches of a oneof. Some requests are damaged as bytes besides.
"""

import math
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from hypothesis import strategies as st
from sonde.v1 import inspection_pb2 as pb

from tests.support import wire

SECONDS = 30.0
"""After so long a call counts as hanging."""
REFUSALS = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 63, 64, 65, 255, 419, 420, 2**31 - 1, -(2**31))
LONG = (*INTEGERS, 2**32 - 1, 2**32, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, 1e-7, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", " ", "a", " Paris", "The Eiffel Tower", "\x00", "é", "🗼", "\u202e", "a" * 500, "{}", "%s", "../../x")
DEPTH = 5
# A type of field that is not here is a new one, and fails loudly.
CHOICES: dict[int, tuple[Any, ...]] = {
    Field.TYPE_INT32: INTEGERS,
    Field.TYPE_INT64: LONG,
    Field.TYPE_FLOAT: FLOATS,
    Field.TYPE_DOUBLE: FLOATS,
    Field.TYPE_BOOL: (True, False),
    Field.TYPE_STRING: TEXTS,
}


def seeds(ids: Sequence[int] = (5, 130, 77, 301, 9, 260, 41)) -> list[Message]:
    """Valid requests of every kind, for a model of 4 blocks or more and a vocabulary of 400 or more."""
    prompt, targets = wire.prompt(ids), [pb.Target(id=41), pb.Target(id=9, contrast_id=5)]
    neuron = pb.Site(component=pb.COMPONENT_NEURON, layers=[1], units=[0, 3, 5], positions=[-1])
    stream = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[0, 2], positions=[1, 2])
    scores = pb.Site(component=pb.COMPONENT_ATTENTION_SCORES, layers=[1], units=[0], positions=[3, 4])
    edits = [
        pb.Edit(site=neuron, scale=0.0),
        pb.Edit(site=stream, set=wire.tensor([0.5] * 48)),
        pb.Edit(site=stream, add=wire.tensor([[0.1] * 48] * 2)),
        pb.Edit(site=stream, patch=pb.Patch(sources=[0], source_positions=[0, 1])),
        pb.Edit(site=stream, noise=pb.Noise(standard_deviation=0.1, seed=3)),
        pb.Edit(site=stream, project_out=wire.tensor([1.0] * 48)),
        pb.Edit(site=scores, knockout=pb.Knockout(key_positions=[0])),
        pb.Edit(site=pb.Site(component=pb.COMPONENT_MLP_OUT, layers=[2], from_position=2), scale=0.5),
    ]
    readout = pb.Readout(targets=targets, top_k=3, kl_divergence=True, activations=[stream])
    plan = pb.InterventionList(interventions=[pb.Intervention(edits=[edit]) for edit in edits])
    swept = pb.Sweep(edit=edits[0], together=[pb.AXIS_POSITION], layer_window=2, always=[edits[2]])
    gaussian = pb.CausalTracing.Gaussian(samples=2, deviations=2.0, seed=1)
    subject = pb.PositionList(positions=[1, 2])
    return [
        pb.TraceRequest(prompt=prompt, targets=targets, top_k=5),
        pb.TraceRequest(prompt=wire.prompt("The Eiffel Tower is"), targets=[pb.Target(text=" the")]),
        pb.TraceRequest(prompt=prompt, targets=targets, token_probability=pb.TokenProbability(gradient_norms=True)),
        pb.TraceRequest(
            prompt=prompt,
            targets=targets,
            causal_tracing=pb.CausalTracing(gaussian=gaussian, subject_positions=subject, layers=[0, 1], positions=[1]),
        ),
        pb.TraceRequest(prompt=prompt, activations=pb.Activations(sites=[stream, scores, neuron])),
        pb.InterveneRequest(prompt=prompt, sources=[prompt], list=plan, readout=readout),
        pb.InterveneRequest(prompt=prompt, sources=[prompt], sweep=swept, readout=readout),
        *_about_cases(prompt, targets),
    ]


def seeds_with_images(ids: Sequence[int], image: bytes) -> list[Message]:
    """Valid requests about an image whose tokens are among `ids`."""
    prompt, targets = pb.Prompt(token_ids=pb.TokenIds(ids=ids), image=image), [pb.Target(id=41)]
    named = pb.NamedPositions(span="image")
    stream = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[0, 2], named_positions=[named])
    gaussian = pb.CausalTracing.Gaussian(samples=2, deviations=2.0, seed=1)
    traced = pb.CausalTracing(gaussian=gaussian, named_subject=named, layers=[0, 1], positions=[1])
    edits = [pb.Edit(site=stream, scale=0.5), pb.Edit(site=stream, patch=pb.Patch(sources=[0]))]
    plan = pb.InterventionList(interventions=[pb.Intervention(edits=[edit]) for edit in edits])
    return [
        pb.TraceRequest(prompt=prompt, targets=targets, causal_tracing=traced),
        pb.TraceRequest(prompt=prompt, activations=pb.Activations(sites=[stream])),
        pb.TraceRequest(cases=[pb.Case(prompt=prompt, sources=[prompt])] * 2, targets=targets),
        pb.InterveneRequest(prompt=prompt, sources=[prompt], list=plan, readout=pb.Readout(targets=targets)),
    ]


def _about_cases(prompt: pb.Prompt, targets: Sequence[pb.Target]) -> list[Message]:
    """Valid requests about several prompts with named positions, and for their statistics."""
    prompts = [pb.Prompt(token_ids=pb.TokenIds(ids=[5, 130, 77, 301][:count])) for count in (4, 3, 2)]
    for number, one in enumerate(prompts):
        one.spans.add(name="subject", positions=pb.PositionList(positions=range(number % 2, 2)))
    cases = [pb.Case(prompt=one, sources=[one], group=group) for one, group in zip(prompts, "aba", strict=True)]
    named = [pb.NamedPositions(span="subject", part=part) for part in pb.SpanPart.values()]
    stream = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[0, 2], named_positions=named)
    last = pb.Site(
        component=pb.COMPONENT_RESIDUAL_POST, layers=[1], named_positions=[pb.NamedPositions(part=pb.SPAN_PART_LAST)]
    )
    reduction = pb.Reduction(every=2)
    patching = pb.AttributionPatching(source=pb.Prompt(), components=[pb.COMPONENT_MLP_OUT])
    plan = pb.InterventionList(interventions=[pb.Intervention(edits=[pb.Edit(site=last, patch=pb.Patch(sources=[0]))])])
    generation = pb.Generation(max_new_tokens=2, samples=2, temperature=0.7, top_p=0.9, stop=["q", " the"])
    gaussian = pb.CausalTracing.Gaussian(samples=2, deviations=2.0, seed=1)
    traced = pb.CausalTracing(
        gaussian=gaussian,
        named_subject=pb.NamedPositions(span="subject"),
        named_positions=named,
        components=[pb.COMPONENT_MLP_OUT],
        layers=[1],
    )
    return [
        pb.TraceRequest(cases=cases, activations=pb.Activations(sites=[stream]), reduction=pb.Reduction(largest=2)),
        pb.TraceRequest(cases=cases, targets=targets, causal_tracing=traced, reduction=reduction),
        pb.TraceRequest(cases=cases, targets=targets, token_probability=pb.TokenProbability(named_positions=named)),
        pb.TraceRequest(cases=cases, attribution_patching=patching, targets=targets),
        pb.InterveneRequest(cases=cases, list=plan, readout=pb.Readout(targets=targets), reduction=reduction),
        pb.InterveneRequest(
            prompt=prompt,
            list=pb.InterventionList(interventions=[pb.Intervention(edits=[pb.Edit(site=last, scale=0.5)])]),
            readout=pb.Readout(generation=generation),
        ),
    ]


# ------------------------------------------------------------------ mutations


def _prompt_of(request: Any) -> pb.Prompt:
    prompt: pb.Prompt = request.cases[0].prompt if request.cases else request.prompt
    return prompt


class Fuzzer:
    """An endless supply of mutated requests, the same for the same seed."""

    def __init__(self, seed: int, valid: Sequence[Message] | None = None) -> None:
        self.random = random.Random(seed)
        self.valid = list(seeds() if valid is None else valid)

    def request(self) -> tuple[str, bytes]:
        """A method's name, and the bytes to send it."""
        base = self.random.choice(self.valid)
        method = "Trace" if isinstance(base, pb.TraceRequest) else "Intervene"
        message = type(base)()
        message.CopyFrom(base)
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 8))):
            self._mutate(self._part(message))
        data = message.SerializeToString()
        if self.random.random() < 0.15:
            data = self._damage(data)
        if self.random.random() < 0.03:
            method = "Intervene" if method == "Trace" else "Trace"
        return method, data

    def _part(self, message: Any) -> Any:
        """A message inside of the message, or itself."""
        while self.random.random() < 0.75:
            inner = [value for one, value in message.ListFields() if one.message_type is not None]
            inner = [value for value in inner if isinstance(value, Message) or len(value)]
            if not inner:
                break
            chosen = self.random.choice(inner)
            message = chosen if isinstance(chosen, Message) else self.random.choice(list(chosen))
        return message

    def _mutate(self, message: Any) -> None:
        one = self.random.choice(message.DESCRIPTOR.fields) if message.DESCRIPTOR.fields else None
        if one is None:
            return
        action = self.random.random()
        if action < 0.15:
            message.ClearField(one.name)
        elif action < 0.25:
            other = self._part(self.random.choice(self.valid))
            if other.DESCRIPTOR is message.DESCRIPTOR:
                message.MergeFrom(other)
        elif one.is_repeated:
            self._lengthen(message, one)
        else:
            self._set(message, one, DEPTH)

    def _lengthen(self, message: Any, one: Field) -> None:
        values = getattr(message, one.name)
        if len(values) and self.random.random() < 0.4:
            kept = list(values)
            kept *= self.random.choice((0, 1, 2, 3))
            self.random.shuffle(kept)
            copies = [
                type(value).FromString(value.SerializeToString()) if one.message_type else value for value in kept
            ]
            message.ClearField(one.name)
            getattr(message, one.name).extend(copies)
            return
        for _ in range(self.random.choice((1, 1, 2, 5, 40))):
            if one.message_type is not None:
                self._fill(values.add(), DEPTH)
            else:
                values.append(self._scalar(one))

    def _set(self, message: Any, one: Field, depth: int) -> None:
        if one.message_type is None:
            setattr(message, one.name, self._scalar(one))
        elif depth:
            getattr(message, one.name).SetInParent()
            self._fill(getattr(message, one.name), depth - 1)

    def _fill(self, message: Any, depth: int) -> None:
        for one in message.DESCRIPTOR.fields:
            if self.random.random() < 0.4:
                if not one.is_repeated:
                    self._set(message, one, depth)
                elif one.message_type is None:
                    getattr(message, one.name).extend(self._scalar(one) for _ in range(self.random.randrange(4)))
                elif depth:
                    self._fill(getattr(message, one.name).add(), depth - 1)

    def _scalar(self, one: Field) -> Any:
        if one.type == Field.TYPE_ENUM:
            return self.random.choice((*one.enum_type.values_by_number, -1, 99, 2**31 - 1))
        if one.type == Field.TYPE_BYTES and one.name == "image":
            images = [value.image for value in map(_prompt_of, self.valid) if value.image]
            return self._damage(self.random.choice(images)) if images else self.random.randbytes(40)
        if one.type == Field.TYPE_BYTES:
            count = self.random.choice((0, 1, 4, 48, 96))
            return struct.pack(f"<{count}f", *(self.random.choice((0.0, 1.0, -2.0, math.nan)) for _ in range(count)))
        return self.random.choice(CHOICES[one.type])

    def _damage(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 10))):
            place = self.random.randrange(len(changed) + 1)
            kind = self.random.random()
            if kind < 0.5 and place < len(changed):
                changed[place] ^= 1 << self.random.randrange(8)
            elif kind < 0.7:
                del changed[place:]
            elif kind < 0.85:
                changed[place:place] = self.random.randbytes(self.random.randrange(1, 9))
            else:
                del changed[place : place + self.random.randrange(1, 9)]
        return bytes(changed)


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of a type, for hypothesis to search and to make small."""
    return _filled(kind.DESCRIPTOR, DEPTH - 1).map(lambda values: _build(kind, values))


def _filled(descriptor: Any, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = {one.name: _values(one, depth) for one in descriptor.fields if depth or one.message_type is None}
    return st.fixed_dictionaries({}, optional=optional)


def _values(one: Field, depth: int) -> st.SearchStrategy[Any]:
    if one.message_type is not None:
        value: st.SearchStrategy[Any] = _filled(one.message_type, depth - 1)
    elif one.type == Field.TYPE_ENUM:
        value = st.sampled_from((*one.enum_type.values_by_number, 99))
    elif one.type == Field.TYPE_INT32:
        value = st.sampled_from(INTEGERS) | st.integers(-9, 9)
    elif one.type == Field.TYPE_INT64:
        value = st.sampled_from(LONG) | st.integers(-9, 9)
    elif one.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        value = st.floats(width=32)
    elif one.type == Field.TYPE_BOOL:
        value = st.booleans()
    else:
        value = st.text(max_size=20) if one.type == Field.TYPE_STRING else st.binary(max_size=48)
    return st.lists(value, max_size=3) if one.is_repeated else value


def _build(kind: type[Message], values: dict[str, Any]) -> Message:
    message: Any = kind()
    _fill_in(message, values)
    return message


def _fill_in(message: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        one = message.DESCRIPTOR.fields_by_name[name]
        if one.message_type is None:
            if one.is_repeated:
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        elif one.is_repeated:
            for entry in value:
                _fill_in(getattr(message, name).add(), entry)
        else:
            getattr(message, name).SetInParent()
            _fill_in(getattr(message, name), value)


# ------------------------------------------------------------------ the assault


@dataclass
class Outcome:
    """What became of the requests."""

    codes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Code, method and bytes of what should not have been."""

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {code}" for code, count in self.codes.most_common())


def send(channel: grpc.Channel, method: str, data: bytes) -> grpc.StatusCode:
    """How a request of these bytes ends; its whole answer is read, and must be messages of the contract."""
    answers = {"Trace": pb.TraceResponse, "Intervene": pb.InterveneResponse}
    call: Any = channel.unary_stream(f"/sonde.v1.InspectionService/{method}")
    stream = call(data, timeout=SECONDS)
    try:
        for message in stream:
            answers[method].FromString(message)
    except grpc.RpcError:
        pass
    code = stream.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def assault(
    channel: grpc.Channel,
    requests: Iterator[tuple[str, bytes]],
    healthy: Callable[[], bool],
    every: int = 1000,
) -> Outcome:
    """Sends all requests; after each `every` of them, and in the end, the server has to be `healthy`."""
    outcome = Outcome()
    number = 0
    for number, (method, data) in enumerate(requests, 1):
        code = send(channel, method, data)
        outcome.codes[code.name] += 1
        if code is not grpc.StatusCode.OK and code not in REFUSALS:
            outcome.faults.append((code.name, method, data))
        if number % every == 0:
            assert healthy(), f"the server's answers are wrong after {number} requests"
    assert healthy(), f"the server's answers are wrong after {number} requests"
    return outcome
