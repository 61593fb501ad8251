"""The servicer: request to question, question to method, answers to messages. Nothing else."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceServicer

from ..config import Limits
from ..errors import NotServing, Stopped
from ..questions.answers import Answer
from ..questions.cases import Cases
from ..questions.causal_scrubbing import CausalScrubbing
from ..questions.interventions import InterveneQuestion
from ..questions.places import ModelDescription
from ..questions.traces import TraceQuestion
from ..sharing.quota import RunQuota
from ..wire import SMALL_RUNS, decode_intervene, decode_trace, encode_intervene, encode_model, encode_trace
from .guards.calls import current_call
from .heartbeat import with_heartbeat

if TYPE_CHECKING:
    from ..model.vocabulary import Vocabulary
    from ..sharing.session import Session


Question = TraceQuestion | InterveneQuestion | Cases[TraceQuestion] | Cases[InterveneQuestion] | CausalScrubbing


class Sessions(Protocol):
    """Gives each caller a share of the model."""

    def session(
        self, *, caller: str, cancelled: threading.Event, deadline: float | None, runs: int, held: int
    ) -> AbstractContextManager["Session"]:
        """A caller's share of the model, until the block ends."""


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model that is ready for questions, and what answers them."""

    description: ModelDescription
    vocabulary: "Vocabulary"
    limits: Limits
    quota: RunQuota
    version: str
    scheduler: Sessions
    trace: Callable[[TraceQuestion | Cases[TraceQuestion], "Session"], Iterator[Answer]]
    intervene: Callable[[InterveneQuestion | Cases[InterveneQuestion] | CausalScrubbing, "Session"], Iterator[Answer]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for an answer: `gone` is set when nobody does any more; `deadline` as time.monotonic() gives it."""

    gone: threading.Event
    deadline: float | None

    @classmethod
    def of(cls, context: grpc.ServicerContext) -> "Caller":
        """That of a call which has begun."""
        gone = threading.Event()
        # gRPC never stops a handler: it calls back, unless the call is over already.
        if not context.add_callback(gone.set):
            gone.set()
        # The stubs promise a deadline; gRPC gives None if the caller set none.
        remaining: Any = context.time_remaining()
        finite = remaining is not None and math.isfinite(remaining) and remaining < threading.TIMEOUT_MAX
        ends = [time.monotonic() + remaining] if finite else []
        call = current_call()
        if call is not None and call.ends is not None:
            ends.append(call.ends)
        return cls(gone, min(ends, default=None))

    def check(self) -> None:
        """Raises Stopped when nobody waits any more."""
        if self.gone.is_set() or (self.deadline is not None and time.monotonic() >= self.deadline):
            raise Stopped("the caller went away")


class InspectionServicer(InspectionServiceServicer):
    """Answers sonde.v1.InspectionService. Until it hosts a model every call raises NotServing."""

    def __init__(self) -> None:
        self._hosted: Hosted | None = None
        self._absent = "the model is still loading"

    def host(self, hosted: Hosted | None) -> None:
        """Lets calls ask this model from now on; with None they are turned away."""
        self._hosted = hosted

    def announce_shutdown(self) -> None:
        """From now on, calls that find no model are told that the server is shutting down."""
        self._absent = "the server is shutting down"

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        """Describes the hosted model, without waiting for it."""
        hosted = self._ready()
        return encode_model(hosted.description, hosted.limits, hosted.version)

    def Trace(self, request: pb.TraceRequest, context: grpc.ServicerContext) -> Iterator[pb.TraceResponse]:
        """Reports how a prediction comes about."""
        hosted = self._ready()
        caller = Caller.of(context)
        question = decode_trace(request, hosted.description, hosted.vocabulary, hosted.limits, caller.check)
        with _session(hosted, question, caller) as session:
            answers = _answers(question, hosted.trace(question, session), session)
            yield from encode_trace(answers, hosted.description, hosted.vocabulary, hosted.version)

    def Intervene(self, request: pb.InterveneRequest, context: grpc.ServicerContext) -> Iterator[pb.InterveneResponse]:
        """Reports what each intervention did to the prediction."""
        hosted = self._ready()
        caller = Caller.of(context)
        question = decode_intervene(request, hosted.description, hosted.vocabulary, hosted.limits, caller.check)
        with _session(hosted, question, caller) as session:
            answers = _answers(question, hosted.intervene(question, session), session)
            yield from encode_intervene(answers, hosted.description, hosted.vocabulary, hosted.version)

    def _ready(self) -> Hosted:
        hosted = self._hosted
        if hosted is None:
            raise NotServing(self._absent)
        return hosted


def _answers(question: Question, answers: Iterator[Answer], session: "Session") -> Iterator[Answer]:
    """The answers, with a heartbeat where there are more than one message has."""
    call = current_call()
    if question.dry_run or call is None or call.runs <= SMALL_RUNS:
        return answers
    return with_heartbeat(answers, session.cancelled.set, session.runs_done)


def _session(hosted: Hosted, question: Question, caller: Caller) -> AbstractContextManager["Session"]:
    call = current_call()
    assert call is not None
    held = 0
    if not question.dry_run:
        runs, held = question.runs(hosted.description), question.held_bytes(hosted.description)
        hosted.quota.take(call.caller, runs)
        call.runs = runs
    return hosted.scheduler.session(
        caller=call.caller, cancelled=caller.gone, deadline=caller.deadline, runs=call.runs, held=held
    )
