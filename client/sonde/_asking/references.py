"""Causal scrubbing: every request has all cases, which are its examples, and asks about those that are lacking."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from sonde._answers.model import Limits
from sonde._answers.requests import Request as Asked
from sonde._answers.results import Result
from sonde._asking.asking import Request
from sonde._asking.cases import EachCase
from sonde._connection.progress import Steps
from sonde._wire.assembly import Assembler
from sonde._wire.plans import int_tensor
from sonde._wire.tensors import from_tensor
from sonde.v1 import inspection_pb2 as pb

ResultT = TypeVar("ResultT", bound=Result)


class EachReference(EachCase[ResultT], Generic[ResultT]):
    """A dataset of examples, answered reference by reference."""

    def __init__(self, request: pb.InterveneRequest, kept: Asked, make: Callable[[], Assembler[Any, ResultT]]) -> None:
        super().__init__(request, kept, make)
        self._asked = list(request.causal_scrubbing.references) or list(range(len(request.cases)))
        self._scrubbing = request
        self._total = len(self._asked)
        self._groups = tuple(request.cases[case].group for case in self._asked if 0 <= case < len(request.cases))
        self._steps = Steps(cases=self._total)

    def request(self, limits: Limits | None) -> Request | None:  # noqa: ARG002 - the examples cannot be split up
        """The request about all references, or, if a stream broke off, about those that are lacking."""
        if self._done >= self._total:
            return None
        self._first, self._end = self._done, self._total
        if not self._first:
            return self._scrubbing
        asked = pb.InterveneRequest()
        asked.CopyFrom(self._scrubbing)
        plan = asked.causal_scrubbing
        del plan.references[:]
        plan.references.extend(self._asked[self._first :])
        if plan.HasField("draws"):
            plan.draws.CopyFrom(int_tensor(np.asarray(from_tensor(plan.draws), np.int32)[self._first :]))
        return asked

    def _number(self, case_index: int) -> int:
        return self._asked.index(case_index) if case_index in self._asked else -1
