"""Encoding of prompts, targets, sites and generation settings."""

from collections.abc import Callable, Iterable
from itertools import starmap
from typing import Protocol, SupportsIndex, TypeVar, get_args

from sonde._ask.cases import Case, Cases
from sonde._ask.given import flag, number, refusal, several
from sonde._ask.indices import index
from sonde._ask.named import NamedPositions, PositionLike, Positions, position
from sonde._ask.names import (
    ACTIVATION_TYPES,
    COMPONENTS,
    DATA_TYPES,
    POOLINGS,
    SPAN_PARTS,
    STACKS,
    DataTypeName,
    PoolingName,
    ReduceName,
    SpanPart,
    check_name,
)
from sonde._ask.plans import Generation
from sonde._ask.prompts import Chat, PromptLike, Target, Targets, TokenLike, as_prompt, as_targets
from sonde._ask.sites import Site
from sonde._ask.spans import Span
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

_Message = TypeVar("_Message")
_Entry_contra = TypeVar("_Entry_contra", contravariant=True)


def checked(name: str, make: Callable[[], _Message]) -> _Message:
    """Call `make`, and turn protobuf's errors (wrong type, out of range, invalid Unicode) into InvalidRequest."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest.at(name, str(error)) from None


def encode_prompt(given: PromptLike) -> pb.Prompt:
    """Encode a prompt with its spans."""
    prompt = as_prompt(given)
    content = prompt.content
    message = checked("prompt", lambda: pb.Prompt(spans=list(starmap(_span, prompt.named_spans.items()))))
    if prompt.file is not None:
        message.image = prompt.file
    if isinstance(content, str):
        checked("prompt", lambda: setattr(message, "text", content))
    elif isinstance(content, Chat):
        message.chat.CopyFrom(checked("messages", lambda: _chat(content)))
    else:
        message.token_ids.CopyFrom(checked("prompt", lambda: pb.TokenIds(ids=content)))
    return message


def _chat(chat: Chat) -> pb.Chat:
    return pb.Chat(
        messages=[pb.ChatMessage(role=role, content=content) for role, content in chat.turns],
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
    )


def _span(name: str, span: Span) -> pb.Span:
    if isinstance(span.where, str):
        return pb.Span(name=name, text=span.where, occurrence=span.occurrence)
    return pb.Span(name=name, positions=pb.PositionList(positions=span.where))


def write_asked(given: PromptLike | Cases, request: pb.TraceRequest | pb.InterveneRequest) -> None:
    """Write what is run: a prompt, or the cases of a dataset.

    Raises:
        InvalidRequest: if a prompt, source or target is not of its kind; that of a case is named by its number.
    """
    if not isinstance(given, Cases):
        request.prompt.CopyFrom(encode_prompt(given))
        return
    for place, case in enumerate(given):
        try:
            request.cases.append(encode_case(case))
        except InvalidRequest as error:
            raise InvalidRequest.at(f"cases[{place}]", str(error)) from None


def reduction(cases: Cases | None, reduce: ReduceName | None, largest: int | None) -> pb.Reduction | None:
    """Encode how cases are reduced; None: they are not.

    Raises:
        InvalidRequest: if there are no cases to reduce, or the largest values are wanted without a reduction.
    """
    if reduce is None:
        if largest is not None:
            raise InvalidRequest.at("largest", "expected reduce='mean' with it")
        return None
    check_name(reduce, get_args(ReduceName), "reduce")
    if cases is None:
        raise InvalidRequest.at("reduce", "expected several cases to reduce, got one prompt")
    return pb.Reduction(largest=0 if largest is None else index(largest, "largest"))


def encode_data_type(given: DataTypeName | None) -> pb.DataType.ValueType:
    """Encode the type in which activations come."""
    if given is None:
        return pb.DATA_TYPE_UNSPECIFIED
    return DATA_TYPES[check_name(given, ACTIVATION_TYPES, "data_type")]


def encode_pooling(given: PoolingName | None) -> pb.Pooling.ValueType:
    """Encode how the positions of activations are joined."""
    return pb.POOLING_UNSPECIFIED if given is None else POOLINGS[check_name(given, POOLINGS, "pooling")]


def encode_case(case: Case) -> pb.Case:
    """Encode one case of a dataset."""
    return pb.Case(
        prompt=encode_prompt(case.whole_prompt),
        sources=list(map(encode_prompt, case.prompts_from)),
        targets=encode_targets(case.targets),
        group=case.group,
    )


def encode_targets(given: Targets) -> list[pb.Target]:
    """Encode targets."""
    return [_target(target) for target in as_targets(given)]


def _target(target: Target) -> pb.Target:
    message = pb.Target()
    token, contrast = _token(target.token), None if target.contrast is None else _token(target.contrast)
    if isinstance(token, str):
        message.text = token
    else:
        message.id = token
    if isinstance(contrast, str):
        message.contrast_text = contrast
    elif contrast is not None:
        message.contrast_id = contrast
    return message


def _token(given: TokenLike) -> str | int:
    if not isinstance(given, str):
        return _token_id(given)
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest.at("targets", f"expected valid Unicode text: {error}") from None
    return given


def _token_id(given: SupportsIndex) -> int:
    try:
        return index(given, "targets")
    except InvalidRequest:
        raise refusal("targets", "a token's text or id, or a pair (target, contrast)", given) from None


def encode_site(site: Site) -> pb.Site:
    """Encode a site."""
    if not isinstance(site, Site):
        raise refusal("site", "a site such as sonde.neuron(layer=3)", site)
    message = pb.Site(
        component=COMPONENTS[site.component],
        layers=site.layers,
        units=site.units,
        stack=STACKS[site.stack] if site.stack is not None else pb.STACK_UNSPECIFIED,
    )
    write_positions(site.positions, message.positions, message.named_positions)
    if isinstance(site.from_position, NamedPositions):
        message.named_from_position.CopyFrom(encode_named(site.from_position))
    elif site.from_position is not None:
        message.from_position = site.from_position
    return message


def encode_named(given: NamedPositions) -> pb.NamedPositions:
    """Encode positions by name."""
    part = pb.SPAN_PART_UNSPECIFIED if given.part is None else SPAN_PARTS[given.part]
    return checked("positions", lambda: pb.NamedPositions(span=given.span, part=part))


def decode_named(message: pb.NamedPositions) -> NamedPositions:
    """Decode positions by name."""
    parts: list[SpanPart] = [name for name, value in SPAN_PARTS.items() if value == message.part]
    return NamedPositions(message.span, parts[0] if parts else None)


class _List(Protocol[_Entry_contra]):
    """A repeated field."""

    def extend(self, entries: Iterable[_Entry_contra], /) -> None:
        """Add entries."""


def write_positions(given: Positions, numbers: _List[int], names: _List[pb.NamedPositions]) -> None:
    """Write positions into the field for numbers or the one for names."""
    numbers.extend(entry for entry in given if isinstance(entry, int))
    names.extend(encode_named(entry) for entry in given if isinstance(entry, NamedPositions))


def write_position(given: PositionLike | None, message: pb.TraceRequest | pb.Readout) -> None:
    """Write the position that is read; None is the default."""
    if given is None:
        return
    found = position(given, "position")
    if isinstance(found, NamedPositions):
        message.named_position.CopyFrom(encode_named(found))
    else:
        message.position = found


def encode_generation(generation: Generation) -> pb.Generation:
    """Encode how far runs are continued."""
    if not isinstance(generation, Generation):
        raise refusal("generation", "sonde.Generation(max_new_tokens)", generation)
    sites = generation.sites
    return pb.Generation(
        max_new_tokens=index(generation.max_new_tokens, "max_new_tokens"),
        temperature=number(generation.temperature, "temperature"),
        seed=None if generation.seed is None else index(generation.seed, "seed", 64),
        ignore_end_token=flag(generation.ignore_end_token, "ignore_end_token"),
        top_p=None if generation.top_p is None else number(generation.top_p, "top_p"),
        stop=_stops(generation.stop),
        samples=_more_than_one(index(generation.samples, "samples")),
        log_probabilities=flag(generation.log_probabilities, "log_probabilities"),
        activations=map(encode_site, sites),
        changed_only=flag(generation.changed_only, "changed_only"),
    )


def _more_than_one(samples: int) -> int:
    """One continuation is what a request asks for by itself."""
    return 0 if samples == 1 else samples


def _stops(given: str | Iterable[str]) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else several(given, "stop", "a text or a list of texts")
    for stop in stops:
        whole: object = stop
        if not isinstance(whole, str):
            raise refusal("stop", "a text or a list of texts", stop)
    return stops
