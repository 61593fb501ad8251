"""Interventions: what is read in every run, and what it was."""

from collections.abc import Mapping, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.costs import FLOAT
from ..questions.interventions import Readout
from ..questions.plans import Intervention, Sweep
from ..questions.prompts import Prompt
from .activations import site_bytes
from .fields import Reader
from .generation import read_generation
from .prompts import read_prompt, read_targets
from .sites import read_sites
from .tensors import encode_floats, encode_integers


def read_sources(messages: Sequence[pb.Prompt], reader: Reader) -> list[Prompt | None]:
    """The other prompts, whose values patches take."""
    # Each is a run of its own.
    if not reader.runs(len(messages), "sources"):
        return []
    return [read_prompt(source, f"sources[{i}]", reader) for i, source in enumerate(messages)]


def read_readout(message: pb.Readout, tokens: int | None, reader: Reader) -> Readout | None:
    """What is read in every run."""
    targets = read_targets(message.targets, "readout.targets", reader)
    given = message.position if message.HasField("position") else -1
    position = reader.position(given, tokens, "readout.position")
    top_k = reader.top_k(message.top_k, "readout.top_k")
    sites = read_sites(message.activations, "readout.activations", tokens, reader)
    generation = None
    if message.HasField("generation"):
        generation = read_generation(message.generation, "readout.generation", tokens, reader)
    if position is None:
        return None
    return Readout(targets, position, top_k, message.kl_divergence, sites, generation)


def bytes_per_run(
    request: pb.InterveneRequest,
    readout: Readout | None,
    plan: Sequence[Intervention] | Sweep,
    tokens: int,
    reader: Reader,
) -> int:
    """Bytes of one run in the answer."""
    if readout is None:
        return 0
    if isinstance(plan, Sweep):
        edits = len(plan.always) + 1
    else:
        edits = max((len(intervention.edits) for intervention in plan), default=0)
    targets = max(1, len(request.readout.targets))
    numbers = 2 * targets + 2 * readout.top_k + int(readout.kl_divergence) + edits
    generated = 0 if readout.generation is None else readout.generation.answer_bytes
    return numbers * FLOAT + generated + sum(site_bytes(site, tokens, reader) for site in readout.activations)


def encode_readings(readings: answers.Readings, texts: Mapping[int, str]) -> pb.Readings:
    """Some runs of the plan."""
    message = pb.Readings(
        offset=readings.offset,
        count=len(readings.log_probabilities),
        log_probabilities=encode_floats(readings.log_probabilities),
        logits=encode_floats(readings.logits),
        edit_norms=encode_floats(readings.edit_norms),
        token_texts=dict(texts),
    )
    if readings.top_tokens.shape[1]:
        message.top_token_ids.CopyFrom(encode_integers(readings.top_tokens))
        message.top_log_probabilities.CopyFrom(encode_floats(readings.top_log_probabilities))
    if readings.kl_divergences is not None:
        message.kl_divergences.CopyFrom(encode_floats(readings.kl_divergences))
    return message
