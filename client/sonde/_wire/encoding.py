"""Encoding of prompts, targets, sites and generation settings."""

from collections.abc import Callable, Iterable
from typing import SupportsIndex, TypeVar

from sonde._ask.given import flag, number, refusal, several
from sonde._ask.indices import index
from sonde._ask.names import COMPONENTS, STACKS
from sonde._ask.plans import Generation
from sonde._ask.prompts import Prompt, PromptLike, Target, Targets, TokenLike, as_targets
from sonde._ask.sites import Site
from sonde.errors import InvalidRequest
from sonde.v1 import inspection_pb2 as pb

_Message = TypeVar("_Message")


def checked(name: str, make: Callable[[], _Message]) -> _Message:
    """Call `make`, and turn protobuf's errors (wrong type, out of range, invalid Unicode) into InvalidRequest."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest.at(name, str(error)) from None


def encode_prompt(given: PromptLike) -> pb.Prompt:
    """Encode a prompt."""
    prompt = given if isinstance(given, Prompt) else Prompt(given)
    content = prompt.content
    image = b"" if prompt.image is None else _image(prompt.image)
    if isinstance(content, str):
        return checked("prompt", lambda: pb.Prompt(text=content, image=image))
    return checked("prompt", lambda: pb.Prompt(token_ids=pb.TokenIds(ids=content), image=image))


def _image(given: bytes) -> bytes:
    if not isinstance(given, bytes | bytearray | memoryview):
        raise refusal("image", "the bytes of a PNG or JPEG", given)
    return bytes(given)


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
    return pb.Site(
        component=COMPONENTS[site.component],
        layers=site.layers,
        units=site.units,
        positions=site.positions,
        from_position=site.from_position,
        stack=STACKS[site.stack] if site.stack is not None else pb.STACK_UNSPECIFIED,
    )


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
        samples=index(generation.samples, "samples"),
        log_probabilities=flag(generation.log_probabilities, "log_probabilities"),
        activations=map(encode_site, sites),
    )


def _stops(given: str | Iterable[str]) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else several(given, "stop", "a text or a list of texts")
    for stop in stops:
        whole: object = stop
        if not isinstance(whole, str):
            raise refusal("stop", "a text or a list of texts", stop)
    return stops
