"""The questions that both clients ask: the signatures and documentation of their methods.

Each function below builds a `Question` from its arguments. `Client` turns these functions into methods that return the
answer, `AsyncClient` into coroutine functions.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, SupportsIndex, TypeVar, Union, cast, get_args, get_origin, overload

from sonde._answers.cases import CasesResult
from sonde._answers.interventions import InterventionResult
from sonde._answers.reduced import Reduced
from sonde._answers.requests import Request as Asked
from sonde._answers.results import Provenance, Result, TraceResult
from sonde._answers.tokens import Tokens, TokensOfCases
from sonde._ask.cases import Cases, CasesLike, as_cases
from sonde._ask.edits import scale as scale_edit
from sonde._ask.given import several
from sonde._ask.named import PositionLike
from sonde._ask.names import DataTypeName, PoolingName, ReduceName
from sonde._ask.plans import Generation, Plan, labels_of
from sonde._ask.prompts import PromptLike, Targets
from sonde._ask.sites import Site, neuron
from sonde._asking.asking import Asking, OnePrompt, Request
from sonde._asking.cases import EachCase
from sonde._asking.reductions import ReducedCases
from sonde._asking.references import EachReference
from sonde._asking.tokens import Tokenizing
from sonde._connection.progress import Progress
from sonde._connection.timeouts import DEFAULT, Timeout
from sonde._methods.interventions import InterveneAssembler, intervene_request
from sonde._methods.method import Method, TraceT
from sonde._methods.token_probability import TokenProbability, TokenProbabilityResult
from sonde._methods.trace import TraceAssembler, trace_request
from sonde._wire.asked import record
from sonde._wire.assembly import Assembler
from sonde._wire.encoding import encode_prompt, reduction
from sonde.v1 import inspection_pb2 as pb


class Made(Protocol):
    """An answer that says which model computed it."""

    @property
    @abstractmethod
    def provenance(self) -> Provenance:
        """Where the numbers come from."""


AnswerT = TypeVar("AnswerT", bound=Made)
_SingleT = TypeVar("_SingleT", bound=Result)
_AnswerT_co = TypeVar("_AnswerT_co", bound=Made, covariant=True)
ChannelT = TypeVar("ChannelT")
ModelT = TypeVar("ModelT")


@dataclass(frozen=True)
class Question(Generic[_AnswerT_co]):
    """One call: the requests, and how their answers are joined."""

    method: Literal["Trace", "Intervene"]
    asking: Asking[_AnswerT_co]
    progress: Progress
    timeout: Timeout


# ---------------------------------------------------------------------- the questions


@overload
def trace(
    prompt: PromptLike,
    *,
    targets: Targets = None,
    method: None = None,
    position: PositionLike | None = None,
    top_k: int = 10,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceResult]: ...
@overload
def trace(
    prompt: PromptLike,
    *,
    targets: Targets = None,
    method: Method[TraceT],
    position: PositionLike | None = None,
    top_k: int = 10,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceT]: ...
@overload
def trace(
    prompt: CasesLike,
    *,
    targets: Targets = None,
    method: None = None,
    position: PositionLike | None = None,
    top_k: int = 10,
    reduce: None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[CasesResult[TraceResult]]: ...
@overload
def trace(
    prompt: CasesLike,
    *,
    targets: Targets = None,
    method: Method[TraceT],
    position: PositionLike | None = None,
    top_k: int = 10,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    reduce: None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[CasesResult[TraceT]]: ...
@overload
def trace(
    prompt: CasesLike,
    *,
    targets: Targets = None,
    method: None = None,
    position: PositionLike | None = None,
    top_k: int = 10,
    reduce: ReduceName,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[Reduced[TraceResult]]: ...
@overload
def trace(
    prompt: CasesLike,
    *,
    targets: Targets = None,
    method: Method[TraceT],
    position: PositionLike | None = None,
    top_k: int = 10,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    reduce: ReduceName,
    largest: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[Reduced[TraceT]]: ...
def trace(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike | CasesLike,
    *,
    targets: Targets = None,
    method: Method[TraceResult] | None = None,
    position: PositionLike | None = None,
    top_k: int = 10,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    reduce: ReduceName | None = None,
    largest: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[TraceResult] | Question[CasesResult[TraceResult]] | Question[Reduced[TraceResult]]:
    """Run the prompt and trace how the model arrives at its prediction.

    Args:
        prompt: text, token ids or a `Chat`. A list of prompts, or `Cases`, is a dataset: all its cases are answered in
            one call, as a `CasesResult`.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None measures the run's own top
            prediction. The targets of a case come first.
        method: such as `CausalTracing(subject="Eiffel")`; None returns the prediction alone. Each method has a result
            class of its own.
        position: the position where the prediction is read, by number or by name; None means the last.
        top_k: how many of the most probable tokens to return.
        data_type: the type in which activations are sent: "float32" (the default), "bfloat16" or "float16".
        pooling: how positions of activations are joined within a prompt: "mean" or "max"; None: they are not.
        reduce: "mean" reduces the cases of a dataset on the server: the answer is `Reduced`, their means with
            deviations and counts, by `Case.group`. Positions become rows, one for each that the request names.
        largest: with `reduce`, of activations: also the largest values of each unit, this many, and where they are.
        dry_run: only resolve the request and compute its cost; of a dataset, that of all its cases.
        progress: True for a line on standard error, or a function that is called with (done, total).
        timeout: seconds; None sets no limit beyond the server's own.

    Raises:
        SondeError: or one of its subclasses; the transport's own exceptions are never raised.
    """
    cases = as_cases(prompt)
    request = trace_request(
        cast("PromptLike", prompt) if cases is None else cases,
        method,
        targets=targets,
        position=position,
        top_k=_top_k(top_k, reduce),
        data_type=data_type,
        pooling=pooling,
        reduction=reduction(cases, reduce, largest),
        dry_run=dry_run,
    )

    kept = record(request)
    each = kept.without_cases()

    def assembler() -> TraceAssembler[TraceResult]:
        return TraceAssembler(request, method, each)

    asking: Any = _asking(request, kept, cases, assembler, list(request.activations.sites))
    return Question("Trace", asking, progress, timeout)


@overload
def intervene(
    prompt: PromptLike,
    interventions: Plan,
    *,
    targets: Targets = None,
    sources: Sequence[PromptLike] = (),
    position: PositionLike | None = None,
    top_k: int = 10,
    kl_divergence: bool = False,
    activations: Site | Iterable[Site] = (),
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    generation: Generation | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[InterventionResult]: ...
@overload
def intervene(
    prompt: CasesLike,
    interventions: Plan,
    *,
    targets: Targets = None,
    sources: Sequence[PromptLike] = (),
    position: PositionLike | None = None,
    top_k: int = 10,
    kl_divergence: bool = False,
    activations: Site | Iterable[Site] = (),
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    generation: Generation | None = None,
    reduce: None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[CasesResult[InterventionResult]]: ...
@overload
def intervene(
    prompt: CasesLike,
    interventions: Plan,
    *,
    targets: Targets = None,
    sources: Sequence[PromptLike] = (),
    position: PositionLike | None = None,
    top_k: int = 10,
    kl_divergence: bool = False,
    activations: Site | Iterable[Site] = (),
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    generation: Generation | None = None,
    reduce: ReduceName,
    largest: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[Reduced[InterventionResult]]: ...
def intervene(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike | CasesLike,
    interventions: Plan,
    *,
    targets: Targets = None,
    sources: Sequence[PromptLike] = (),
    position: PositionLike | None = None,
    top_k: int = 10,
    kl_divergence: bool = False,
    activations: Site | Iterable[Site] = (),
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    generation: Generation | None = None,
    reduce: ReduceName | None = None,
    largest: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    timeout: Timeout = DEFAULT,
) -> Question[InterventionResult] | Question[CasesResult[InterventionResult]] | Question[Reduced[InterventionResult]]:
    """Run the prompt once unchanged and once per intervention, and measure the effect of each.

    Args:
        prompt: text, token ids or a `Chat`. A list of prompts, or `Cases`, is a dataset: all its cases are answered in
            one call, as a `CasesResult`.
        interventions: one entry per run: an edit, or a list of edits made together. A mapping names the runs, as in
            `{"no head 9.1": edit}`. Or a `sweep()`, `circuits()`, or, for a dataset, `CausalScrubbing`.
        targets: the tokens to measure, by text or id, or `(target, contrast)`; None measures the unchanged run's own
            top prediction. The targets of a case come first.
        sources: prompts to which patches refer by index. A patch can also contain its prompt, and a case its sources.
        position: the position where the prediction is read, by number or by name; None means the last.
        top_k: how many of the most probable tokens to return for each run.
        kl_divergence: also return KL(unchanged || changed) for each run.
        activations: sites to read in each run, after its edits.
        data_type: the type in which activations are sent: "float32" (the default), "bfloat16" or "float16".
        pooling: how positions of activations are joined within a prompt: "mean" or "max"; None: they are not.
        generation: generate tokens in each run.
        reduce: "mean" reduces the cases of a dataset on the server: the answer is `Reduced`, their means with
            deviations and counts, by `Case.group`.
        largest: with `reduce`, of activations: also the largest values of each unit, this many, and where they are.
        dry_run: only resolve the request and compute its cost; of a dataset, that of all its cases.
        progress: True for a line on standard error, or a function that is called with (done, total).
        timeout: seconds; None sets no limit beyond the server's own.

    Raises:
        SondeError: or one of its subclasses; the transport's own exceptions are never raised.
    """
    sites = (activations,) if isinstance(activations, Site) else several(activations, "activations", "a list of sites")
    cases = as_cases(prompt)
    request = intervene_request(
        cast("PromptLike", prompt) if cases is None else cases,
        interventions,
        targets=targets,
        sources=sources,
        position=position,
        top_k=_top_k(top_k, reduce),
        kl_divergence=kl_divergence,
        activations=sites,
        generation=generation,
        data_type=data_type,
        pooling=pooling,
        reduction=reduction(cases, reduce, largest),
        dry_run=dry_run,
    )

    kept = record(request, labels_of(interventions))
    each = kept.without_cases()

    def assembler() -> InterveneAssembler:
        return InterveneAssembler(request, sites, () if generation is None else generation.sites, each)

    asking: Any = _asking(request, kept, cases, assembler, list(request.readout.activations))
    return Question("Intervene", asking, progress, timeout)


def _top_k(top_k: int, reduce: ReduceName | None) -> int:
    """The most probable tokens of different cases have no mean."""
    return top_k if reduce is None else 0


def _asking(
    request: Request,
    kept: Asked,
    cases: Cases | None,
    assembler: Callable[[], Assembler[Any, _SingleT]],
    sites: Sequence[pb.Site],
) -> Asking[Any]:
    """How the request is asked, by whether there is one prompt, or many, and whether these are reduced."""
    if cases is None:
        return OnePrompt(request, assembler())
    if request.HasField("reduction"):
        return ReducedCases(request, kept, cases, assembler, sites)
    if isinstance(request, pb.InterveneRequest) and request.HasField("causal_scrubbing"):
        return EachReference(request, kept, assembler)
    return EachCase(request, kept, assembler)


@overload
def tokenize(prompt: PromptLike, *, timeout: Timeout = DEFAULT) -> Question[Tokens]: ...
@overload
def tokenize(prompt: CasesLike, *, timeout: Timeout = DEFAULT) -> Question[TokensOfCases]: ...
def tokenize(
    prompt: PromptLike | CasesLike, *, timeout: Timeout = DEFAULT
) -> Question[Tokens] | Question[TokensOfCases]:
    """Return the tokens of a prompt as the model reads it, with the positions of its spans; nothing is run.

    Special tokens are included. A `Chat` is written by the template of the model's own checkpoint.

    Args:
        prompt: text, token ids or a `Chat`; of a list of prompts, or `Cases`, the tokens of each are returned.
        timeout: seconds; None sets no limit beyond the server's own.

    Raises:
        SondeError: or one of its subclasses; the transport's own exceptions are never raised.
    """
    cases = as_cases(prompt)
    prompts = [cast("PromptLike", prompt)] if cases is None else [case.whole_prompt for case in cases]
    asking: Any = Tokenizing(list(map(encode_prompt, prompts)), many=cases is not None)
    return Question("Trace", asking, False, timeout)


def trace_token_probability(
    input_ids: PromptLike, target_idx: SupportsIndex, *, top_k: int = 10
) -> Question[TokenProbabilityResult]:
    """Measure the probability of token `target_idx` after `input_ids`, at the end and after each layer.

    Iterating over the result yields (probability, gradient norms by position) for each layer. The norms are of the
    gradient of the final probability with respect to the output of the layer.
    """
    return trace(input_ids, targets=[target_idx], method=TokenProbability(gradient_norms=True), top_k=top_k)


def intervene_on_neuron(
    input_ids: PromptLike, layer_idx: SupportsIndex, neuron_idx: SupportsIndex, scale: float = 0, *, top_k: int = 10
) -> Question[InterventionResult]:
    """Scale one MLP neuron at all positions. `result.clean` is the unchanged run, `result[0]` the changed one."""
    return intervene(input_ids, [scale_edit(neuron(layer=layer_idx, unit=neuron_idx), scale)], top_k=top_k)


STREAMED = """Like `{name}`, with the same arguments, but yields the partial result after each message.

The last result is complete. The results before it share its memory and have NaN where nothing has arrived yet. Closing
the generator cancels the call.
"""


def describe(asked: Callable[..., Any], build: Callable[..., Question[Any]], owner: str, *, stream: Any = None) -> None:
    """Give a method of a client the name, signature and documentation of the function that builds its question.

    Args:
        asked: the method.
        build: the function that builds its question.
        owner: the name of the client's class.
        stream: the generic type of generator that the method returns; None if it returns the answer.
    """
    name = f"stream_{build.__name__}" if stream else build.__name__
    signature = inspect.signature(build)
    returned = signature.return_annotation
    questions = (returned,) if get_origin(returned) is Question else get_args(returned)
    answers = [answer for question in questions for answer in get_args(question)]
    returns: Any = Union[tuple(stream[answer] if stream else answer for answer in answers)]  # noqa: UP007 - of a tuple
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    described: Any = asked
    described.__signature__ = signature.replace(
        parameters=[this, *signature.parameters.values()], return_annotation=returns
    )
    described.__annotations__ = {**build.__annotations__, "return": returns}
    described.__name__, described.__qualname__ = name, f"{owner}.{name}"
    described.__doc__ = STREAMED.format(name=build.__name__) if stream else build.__doc__
