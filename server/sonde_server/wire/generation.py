"""Generation: how every run is continued, and its text, token by token."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..questions.generation import Generated, Generation
from ..questions.places import PAIRWISE, Site
from ..questions.texts import GrowingText
from .fields import MOST_NUMBERS, MOST_SITES, Reader
from .sites import Role, read_site
from .tensors import encode_floats

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary

MOST_STOPS = 16
LONGEST_STOP = 1000
MOST_SAMPLES = 256


def read_generation(message: pb.Generation, path: str, tokens: int | None, reader: Reader) -> Generation:
    """How a prompt of `tokens` tokens is continued."""
    most = reader.model.max_positions - (tokens or 1) + 1
    if not 1 <= message.max_new_tokens <= most:
        # The last token is added and not read, so it needs no position.
        reader.problems.add(
            f"{path}.max_new_tokens",
            f"expected 1 to {most} after {tokens or 1} tokens, because the model has {reader.model.max_positions} "
            f"positions, got {message.max_new_tokens}",
        )
    temperature = message.temperature
    if not math.isfinite(temperature) or temperature < 0:
        reader.problems.add(f"{path}.temperature", f"expected a finite number of 0 or more, got {temperature}")
    seed = reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1
    return Generation(
        message.max_new_tokens,
        temperature,
        seed,
        message.ignore_end_token,
        _read_top_p(message, f"{path}.top_p", reader),
        _read_stops(message.stop, f"{path}.stop", reader),
        _read_samples(message, f"{path}.samples", reader),
        message.log_probabilities,
        _read_activations(message.activations, f"{path}.activations", reader),
        reader.vocabulary.decode,
        message.changed_only,
    )


def _read_top_p(message: pb.Generation, path: str, reader: Reader) -> float:
    if not message.HasField("top_p"):
        return 1.0
    if not 0 < message.top_p <= 1:
        reader.problems.add(path, f"expected a probability above 0, at most 1, got {message.top_p}")
    return message.top_p


def _read_stops(stops: Sequence[str], path: str, reader: Reader) -> tuple[str, ...]:
    if not reader.listed(len(stops), MOST_STOPS, path, "texts"):
        return ()
    for i, stop in enumerate(stops):
        if not 1 <= len(stop) <= LONGEST_STOP:
            reader.problems.add(f"{path}[{i}]", f"expected 1 to {LONGEST_STOP} characters, got {len(stop)}")
    return tuple(stops)


def _read_samples(message: pb.Generation, path: str, reader: Reader) -> int:
    if not 0 <= message.samples <= MOST_SAMPLES:
        reader.problems.add(path, f"expected 1 to {MOST_SAMPLES} continuations, got {message.samples}")
    elif message.samples > 1 and message.temperature == 0:
        reader.problems.add(
            path,
            f"expected a temperature above 0 with {message.samples} continuations: at 0 they are all the same",
        )
    return max(1, message.samples)


def _read_activations(messages: Sequence[pb.Site], path: str, reader: Reader) -> tuple[Site, ...]:
    """Sites that are read at generated positions."""
    if not reader.listed(len(messages), MOST_SITES, path, "sites"):
        return ()
    read = [_read_site(message, f"{path}[{i}]", reader) for i, message in enumerate(messages)]
    sites = tuple(site for site in read if site is not None)
    numbers = Generation(1, activations=sites).numbers(reader.model)
    if numbers > MOST_NUMBERS:
        reader.problems.add(
            path,
            f"expected at most {MOST_NUMBERS} numbers for each token, got {numbers}. Name fewer sites, layers or units",
        )
    return sites


def _read_site(message: pb.Site, path: str, reader: Reader) -> Site | None:
    named = (name for name in ("positions", "named_positions") if getattr(message, name))
    first = (name for name in ("from_position", "named_from_position") if message.HasField(name))
    for name in (*named, *first):
        reader.problems.add(f"{path}.{name}", "expected none, because every generated position is read")
    everywhere = pb.Site(component=message.component, layers=message.layers, units=message.units, stack=message.stack)
    site = read_site(everywhere, path, reader, None, Role.READ)
    if site is not None and site.component in PAIRWISE:
        reader.problems.add(
            f"{path}.component",
            f"expected a component without an entry for every key, got {site.component.name}: generated positions "
            "differ in how many keys they have",
        )
        return None
    return site


class Continuations:
    """The text that every new token adds, by run and sample."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary
        self._prompt: Sequence[int] = ()
        self._texts: dict[tuple[int, int], GrowingText] = {}

    def begin(self, prompt: Sequence[int]) -> None:
        """Says which prompt the runs continue."""
        self._prompt = prompt

    def add(self, run: int, sample: int, token: int, *, last: bool) -> str:
        """The text that a token adds to a continuation; with its `last` token, also an unfinished character."""
        key = run, sample
        if key not in self._texts:
            self._texts[key] = GrowingText(self._vocabulary.decode, self._prompt)
        added = self._texts[key].add(token, last=last)
        if last:
            del self._texts[key]
        return added


def encode_generated(step: Generated, texts: Mapping[int, str], continuations: Continuations) -> Iterator[pb.Generated]:
    """The parts of one step, continuation by continuation."""
    given = step.log_probabilities
    for number, token in enumerate(step.tokens):
        run, sample, reason = step.runs[number], step.samples[number], step.reasons[number]
        yield pb.Generated(
            run=run,
            sample=sample,
            offset=step.offset,
            tokens=[pb.Token(id=token, text=texts[token])],
            text=continuations.add(run, sample, token, last=reason is not None),
            finish_reason=pb.Generated.FinishReason.ValueType(reason or 0),
            log_probabilities=() if given is None else given[number : number + 1],
            activations=[encode_floats(values[number], step.encoding) for values in step.activations],
        )
