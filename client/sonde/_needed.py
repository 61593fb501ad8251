"""The options of the `sonde` command that mean something only with another one, and the prompt that they make up."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Final

from sonde._ask.cases import Cases
from sonde._ask.prompts import Chat, Prompt
from sonde._options import PLACES
from sonde.errors import InvalidRequest

_TRACING: Final = ("--subject", "--counterfactual")
_LENS: Final = ("--lens",)
_ATTRIBUTION: Final = ("--attribute-from",)
_DATASET: Final = {"--system": ("--chat",), "--reduce": ("--cases",)}
_NEEDED: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "trace": {
        **_DATASET,
        "--samples": _TRACING,
        "--noise": _TRACING,
        "--seed": _TRACING,
        "--window": _TRACING,
        "--layers": _TRACING,
        "--positions": _TRACING,
        "--component": (*_TRACING, *_ATTRIBUTION),
        "--steps": _ATTRIBUTION,
        "--integration": _ATTRIBUTION,
        "--metric": _ATTRIBUTION,
        "--edges": _ATTRIBUTION,
        "--verify": _ATTRIBUTION,
        "--gradients": _LENS,
        "--threshold": ("--discover-from",),
    },
    "intervene": {**_DATASET, "--separately": PLACES, "--seed": ("--noise",), "--through": ("--along",)},
    "generate": {"--system": ("--chat",)} | dict.fromkeys(("--scale", "--set", "--add", "--from-position"), PLACES),
}
"""By command, the options that mean something only with one of the others."""


def check(options: argparse.Namespace) -> None:
    """Check that no option is given whose effect depends on another option that is not.

    Raises:
        InvalidRequest: if there is one; the message names the options that it needs.
    """
    for option, needed in _NEEDED.get(options.command, {}).items():
        if _given(options, option) and not any(_given(options, other) for other in needed):
            raise InvalidRequest.at(option, f"expected {_alternatives(needed)} with it")


def prompt_of(options: argparse.Namespace) -> str | Chat | Prompt | Cases:
    """What is run: the prompt, what a user says, or the cases of a file.

    Raises:
        InvalidRequest: if there is not exactly one of these, or a line of the file is no case.
        OSError: if the file cannot be read.
    """
    if options.cases is not None:
        if options.prompt is not None or options.chat or options.image is not None:
            raise InvalidRequest.at("--cases", "expected either a prompt or --cases, got both")
        return Cases.from_jsonl(options.cases)
    if options.prompt is None:
        raise InvalidRequest.at("prompt", "expected a prompt, or --cases FILE")
    said: str | Chat = options.prompt
    if options.chat:
        before = [] if options.system is None else [("system", options.system)]
        said = Chat([*before, ("user", options.prompt)], add_generation_prompt=True)
    return said if options.image is None else Prompt(said, options.image)


def other_prompt(options: argparse.Namespace, text: str | None) -> str | Prompt | None:
    """Another prompt that an option gives, with its own image or that of the prompt."""
    image = options.image if options.source_image is None else options.source_image
    return text if text is None or image is None else Prompt(text, image)


def _given(options: argparse.Namespace, option: str) -> bool:
    name = "sites" if option in PLACES else option.removeprefix("--").replace("-", "_")
    value = getattr(options, name)
    return value is not None and value is not False


def _alternatives(options: Sequence[str]) -> str:
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last
