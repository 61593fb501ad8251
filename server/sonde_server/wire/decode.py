"""Requests to questions. Every fault is collected, each under the path of its field."""

from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions.interventions import InterveneQuestion
from ..questions.places import ModelDescription
from ..questions.traces import TraceQuestion
from .edits import Scene
from .fields import Reader
from .interventions import read_readout, read_sources
from .plans import read_plan
from .prompts import read_position, read_prompt, read_targets
from .traces import read_method

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
    targets = read_targets(request.targets, "targets", reader)
    position = read_position(request, prompt, "", reader)
    top_k = reader.top_k(request.top_k, "top_k")
    method = read_method(request, prompt, max(1, len(request.targets)), reader)
    reader.problems.settle()
    assert prompt is not None
    assert position is not None
    assert method is not None
    question = TraceQuestion(prompt, targets, position, top_k, method, request.dry_run)
    reader.check_size(question, str(request.WhichOneof("method") or "prompt"))
    return question


def decode_intervene(
    request: pb.InterveneRequest, description: ModelDescription, vocabulary: "Vocabulary", limits: Limits
) -> InterveneQuestion:
    """The question of an Intervene. Raises as `decode_trace` does."""
    reader = Reader(description, vocabulary, limits)
    prompt = read_prompt(request.prompt, "prompt", reader)
    sources = read_sources(request.sources, reader)
    readout = read_readout(request.readout, prompt, reader)
    plan = read_plan(request, reader, Scene(prompt, sources, generating=request.readout.HasField("generation")))
    reader.problems.settle()
    assert prompt is not None
    assert readout is not None
    assert plan is not None
    resolved = tuple(source for source in sources if source is not None)
    question = InterveneQuestion(prompt, resolved, plan, readout, request.dry_run)
    path = str(request.WhichOneof("plan"))
    reader.check_size(question, path, answer="readout", memory="sources" if resolved else path)
    return question
