"""Requests to questions. Every fault is collected, each under the path of its field."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions.attribution_patching import AttributionPatching
from ..questions.cases import Cases
from ..questions.causal_scrubbing import CausalScrubbing
from ..questions.interventions import InterveneQuestion
from ..questions.places import ModelDescription
from ..questions.token_probability import TokenProbability
from ..questions.traces import Method, TraceQuestion
from .cases import read_cases
from .causal_scrubbing import read_causal_scrubbing
from .edits import Scene
from .fields import Reader, unwatched
from .interventions import read_readout, read_sources
from .plans import read_plan
from .prompts import read_position, read_prompt, read_targets
from .traces import read_method

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary


def decode_trace(
    request: pb.TraceRequest,
    description: ModelDescription,
    vocabulary: "Vocabulary",
    limits: Limits,
    check: Callable[[], None] = unwatched,
) -> TraceQuestion | Cases[TraceQuestion]:
    """The question of a Trace, or those of its cases.

    Raises InvalidQuestion with every violation, Unsupported where the model or this server lacks what is asked, and
    what `check` raises, which is called time and again.
    """
    reader = Reader(description, vocabulary, limits, check=check)

    def read_case(case: pb.Case, own: Reader) -> TraceQuestion | None:
        return _read_trace(request, case.prompt, case.targets or request.targets, case.sources, own)

    question: TraceQuestion | Cases[TraceQuestion] | None
    if request.cases:
        question = read_cases(request, "targets", reader, read_case)
    else:
        _check_single(request, reader)
        question = _read_trace(request, request.prompt, request.targets, None, reader)
        reader.problems.settle()
    assert question is not None
    reader.check_size(question, str(request.WhichOneof("method") or ("cases" if request.cases else "prompt")))
    return question


def _read_trace(
    request: pb.TraceRequest,
    prompted: pb.Prompt,
    targeted: Sequence[pb.Target],
    sources: Sequence[pb.Prompt] | None,
    reader: Reader,
) -> TraceQuestion | None:
    """The question about one prompt. `sources`: those of a case; None: there are no cases."""
    prompt = read_prompt(prompted, reader.prompt, reader)
    targets = read_targets(targeted, reader.targets, reader)
    position = read_position(request, prompt, "", reader)
    top_k = reader.top_k(request.top_k, "top_k")
    method = read_method(request, prompt, sources, max(1, len(targeted)), reader)
    if prompt is None or position is None or method is None:
        return None
    if _differentiated(method) and prompt.sight.horizon(position) > position:
        reader.problems.add(
            "position",
            "expected a position outside of the image, or its last one: gradients are of what precedes the position "
            f"that is read, and positions of the image see later ones; got {position}",
        )
    return TraceQuestion(prompt, targets, position, top_k, method, request.dry_run)


def _differentiated(method: Method) -> bool:
    """Whether gradients of the prediction are taken."""
    return isinstance(method, AttributionPatching) or (isinstance(method, TokenProbability) and method.gradient_norms)


def decode_intervene(
    request: pb.InterveneRequest,
    description: ModelDescription,
    vocabulary: "Vocabulary",
    limits: Limits,
    check: Callable[[], None] = unwatched,
) -> InterveneQuestion | Cases[InterveneQuestion] | CausalScrubbing:
    """The question of an Intervene, or those of its cases. Raises as `decode_trace` does."""
    reader = Reader(description, vocabulary, limits, targets="readout.targets", check=check)

    def read_case(case: pb.Case, own: Reader) -> InterveneQuestion | None:
        return _read_intervene(
            request, case.prompt, case.targets or request.readout.targets, case.sources or request.sources, own
        )

    question: InterveneQuestion | Cases[InterveneQuestion] | CausalScrubbing | None
    if request.HasField("causal_scrubbing"):
        question = read_causal_scrubbing(request, reader)
    elif request.cases:
        question = read_cases(request, "readout.targets", reader, read_case)
    else:
        _check_single(request, reader)
        question = _read_intervene(request, request.prompt, request.readout.targets, request.sources, reader)
        reader.problems.settle()
    assert question is not None
    path = str(request.WhichOneof("plan"))
    reader.check_size(question, path, answer="readout", memory="sources" if request.sources else path)
    return question


def _read_intervene(
    request: pb.InterveneRequest,
    prompted: pb.Prompt,
    targets: Sequence[pb.Target],
    others: Sequence[pb.Prompt],
    reader: Reader,
) -> InterveneQuestion | None:
    """The question about one prompt."""
    prompt = read_prompt(prompted, reader.prompt, reader)
    sources = read_sources(others, reader)
    readout = read_readout(request.readout, prompt, targets, reader)
    plan = read_plan(request, reader, Scene(prompt, sources, generating=request.readout.HasField("generation")))
    if prompt is None or readout is None or plan is None:
        return None
    resolved = tuple(source for source in sources if source is not None)
    return InterveneQuestion(prompt, resolved, plan, readout, request.dry_run)


def _check_single(request: pb.TraceRequest | pb.InterveneRequest, reader: Reader) -> None:
    """Notes what a request needs cases for."""
    if request.HasField("reduction"):
        reader.problems.add("reduction", "expected cases, over which answers are joined, got none")
