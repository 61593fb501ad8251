"""Requests to questions. Every fault is collected, each under the path of its field."""

from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions.costs import count_runs, working_bytes
from ..questions.interventions import InterveneQuestion
from ..questions.places import ModelDescription
from ..questions.plans import Sweep
from ..questions.prompts import Prompt
from ..questions.traces import Method, TraceQuestion
from .activations import read_activations
from .attribution_patching import read_attribution_patching
from .causal_tracing import read_causal_tracing
from .edits import Scene
from .fields import Reader
from .interventions import bytes_per_run, read_readout, read_sources
from .plans import read_plan
from .prompts import read_prompt, read_targets
from .token_probability import read_token_probability

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary


def decode_trace(
    request: pb.TraceRequest, description: ModelDescription, vocabulary: "Vocabulary", limits: Limits
) -> TraceQuestion:
    """The question of a Trace.

    Raises InvalidQuestion with every violation, and Unsupported where the model or this server lacks what is asked.
    """
    reader = Reader(description, vocabulary, limits)
    prompt = read_prompt(request.prompt, "prompt", reader)
    tokens = None if prompt is None else len(prompt.tokens)
    targets = read_targets(request.targets, "targets", reader)
    given = request.position if request.HasField("position") else -1
    position = reader.position(given, tokens, "position")
    top_k = reader.top_k(request.top_k, "top_k")
    method = _read_method(request, prompt, max(1, len(request.targets)), reader)
    reader.problems.settle()
    assert prompt is not None
    assert position is not None
    question = TraceQuestion(prompt, targets, position, top_k, method, request.dry_run)
    _check_memory(question, str(request.WhichOneof("method") or "prompt"), reader)
    return question


def decode_intervene(
    request: pb.InterveneRequest, description: ModelDescription, vocabulary: "Vocabulary", limits: Limits
) -> InterveneQuestion:
    """The question of an Intervene. Raises as `decode_trace` does."""
    reader = Reader(description, vocabulary, limits)
    prompt = read_prompt(request.prompt, "prompt", reader)
    tokens = None if prompt is None else len(prompt.tokens)
    sources = read_sources(request.sources, reader)
    readout = read_readout(request.readout, tokens, reader)
    plan = read_plan(request, reader, Scene(tokens, sources, generating=request.readout.HasField("generation")))
    runs = count_runs(plan)
    if isinstance(plan, Sweep):
        reader.runs(runs, "sweep")
    reader.answer((runs + 1) * bytes_per_run(request, readout, plan, tokens or 0, reader), "readout")
    reader.problems.settle()
    assert prompt is not None
    assert readout is not None
    resolved = tuple(source for source in sources if source is not None)
    question = InterveneQuestion(prompt, resolved, plan, readout, request.dry_run)
    _check_memory(question, "sources" if resolved else str(request.WhichOneof("plan")), reader)
    return question


def _check_memory(question: TraceQuestion | InterveneQuestion, path: str, reader: Reader) -> None:
    reader.memory(working_bytes(question, reader.model), path)
    reader.problems.settle()


def _read_method(request: pb.TraceRequest, prompt: Prompt | None, targets: int, reader: Reader) -> Method | None:
    tokens = None if prompt is None else len(prompt.tokens)
    match request.WhichOneof("method"):
        case "token_probability":
            return read_token_probability(request.token_probability, "token_probability", tokens or 0, targets, reader)
        case "causal_tracing":
            return read_causal_tracing(request.causal_tracing, "causal_tracing", prompt, targets, reader)
        case "attribution_patching":
            asked = request.attribution_patching
            return read_attribution_patching(asked, "attribution_patching", prompt, targets, reader)
        case "activations":
            return read_activations(request.activations, "activations", tokens, reader)
        case _:
            return None
