"""Questions about a dataset that is reduced on the server: the parts of a reduction, joined exactly."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sonde._answers.largest import LargestActivations, Ranked, merged
from sonde._answers.model import Limits
from sonde._answers.reduced import Reduced, Statistics, mean_over
from sonde._answers.requests import Request as Asked
from sonde._answers.results import Result
from sonde._answers.statistics import Moments, finished, joined
from sonde._ask.cases import Cases
from sonde._ask.prompts import Chat
from sonde._asking.asking import Request
from sonde._asking.cases import NO_COST, Dataset, summed
from sonde._wire.assembly import Assembler
from sonde._wire.context import Context
from sonde._wire.counting import counted, unspread
from sonde._wire.parts import missing
from sonde._wire.targets import asked_targets, check_probabilities, rename
from sonde._wire.tensors import from_tensor
from sonde.errors import InvalidRequest, ProtocolError
from sonde.v1 import inspection_pb2 as pb

ResultT = TypeVar("ResultT", bound=Result)
_PARTS: Final = 8
"""How many parts a reduction is answered in, so that a server that is lost costs at most this fraction."""


class _Group(NamedTuple):
    """What is known of one group over some cases."""

    moments: Moments
    cases: int
    largest: LargestActivations | None


class _Incoming(Generic[ResultT]):
    """One group of a part of the reduction, while its messages come."""

    def __init__(self, make: Callable[[], Assembler[Any, ResultT]], targets: Sequence[Sequence[pb.Target]]) -> None:
        """`targets`: those of each case of the group."""
        self._targets = targets
        self.mean, self.deviation, self.counts = make(), make(), make()
        self.largest: dict[str, list[pb.LargestActivations]] = {}
        self.cases = 0
        # Edges of circuits, which come with the mean alone.
        self._together: list[pb.TraceResponse] = []

    def take(self, message: Any, sites: Sequence[pb.Site]) -> None:
        """Take a message."""
        self.cases = message.reduction.count
        check_probabilities(message)
        rename(message.context, self._targets)
        for part in message.largest:
            self.largest.setdefault(f"{part.run}.{part.site}.{part.layer}", []).append(part)
        if message.reduction.statistic == pb.STATISTIC_DEVIATION:
            self.deviation.feed(message)
        elif message.reduction.statistic == pb.STATISTIC_MEAN:
            self.mean.feed(message)
            self.counts.feed(counted(message, sites))
            if isinstance(message, pb.TraceResponse) and message.discovered:
                self._together.append(unspread(message))

    def result(self, first: int, cases: Cases) -> _Group:
        """What is known, once all messages have come.

        Raises:
            ProtocolError: if a part of it did not arrive.
        """
        for edges in self._together:
            self.deviation.feed(edges)
        moments = Moments(self.mean.result(), self.deviation.result(), self.counts.result())
        ranked = {name: _ranked(parts, first) for name, parts in self.largest.items()}
        prompts = tuple(case.prompt for case in cases)
        texts = tuple(map(_text, cases))
        return _Group(moments, self.cases, LargestActivations(ranked, texts, prompts) if ranked else None)


class ReducedCases(Dataset[Reduced[ResultT]], Generic[ResultT]):
    """A dataset whose cases are reduced to statistics."""

    def __init__(
        self,
        request: Request,
        kept: Asked,
        cases: Cases,
        make: Callable[[], Assembler[Any, ResultT]],
        sites: Sequence[pb.Site],
    ) -> None:
        """`make` creates the assembler of one statistic; `sites` are those whose activations are read."""
        super().__init__(request, kept)
        self._cases, self._make, self._sites = cases, make, sites
        self._targets = asked_targets(request)
        self._groups: dict[str, _Group] = {}
        self._incoming: dict[str, _Incoming[ResultT]] = {}
        self._spent = NO_COST
        """The cost of the incoming part."""
        self._range: tuple[int, int] | None = None
        """The cases that the incoming part is over: the first, and the one after the last."""
        # Edges, and places that are verified, are chosen by size: those of two parts are not the same.
        traced = request if isinstance(request, pb.TraceRequest) else pb.TraceRequest()
        asked = traced.attribution_patching
        # A circuit is found for all cases together.
        self._whole_only = asked.HasField("edges") or asked.verify_top > 0 or traced.HasField("circuit_discovery")
        if not self._whole_only:
            request.reduction.every = math.ceil(len(request.cases) / _PARTS)

    def request(self, limits: Limits | None) -> Request | None:
        """The request for the cases that are lacking.

        Raises:
            InvalidRequest: if what is asked cannot be joined from several requests, and one does not take all cases.
        """
        asked = super().request(limits)
        if asked is not None and self._whole_only and len(asked.cases) < self._total:
            raise InvalidRequest.at(
                "cases", f"expected at most {len(asked.cases)} cases, whose edges one request can choose among"
            )
        return asked

    def _take(self, message: Any) -> None:
        part = message.reduction
        first = self._first + part.first_case
        span = (first, first + part.cases)
        if self._range is not None and span != self._range:
            self._finish()
        if self._range is None:
            if first != self._done or not first < span[1] <= self._end:
                raise ProtocolError(f"the answer has cases {first} to {span[1]} where {self._done} was expected next")
            self._range = span
        if part.group not in self._incoming:
            self._incoming[part.group] = _Incoming(self._make, self._targets.get(part.group, ()))
            self._spent = summed(self._spent, replace(Context(message.context, dry_run=True).cost, cases=part.count))
        self._incoming[part.group].take(message, self._sites)

    def _finish(self) -> None:
        if self._range is None:
            return
        found = {name: part.result(self._first, self._cases) for name, part in self._incoming.items()}
        for name, one in found.items():
            known = self._groups.get(name)
            self._groups[name] = one if known is None else _both(known, one, self._whole.reduction.largest)
        end = self._range[1]
        self._cost = summed(self._cost, self._spent)
        self._drop()
        self._answered(end)

    def _drop(self) -> None:
        self._incoming, self._range, self._spent = {}, None, NO_COST

    def _answer(self) -> Reduced[ResultT]:
        if not self._groups and not self._whole.dry_run:
            raise missing("no part of the reduction arrived")
        groups: dict[str, Statistics[ResultT]] = {}
        for name in dict.fromkeys(case.group for case in self._cases):
            if name in self._groups:
                one = self._groups[name]
                mean, deviation, counts = finished(one.moments)
                mean = replace(mean, _over=mean_over(one.cases, name))
                groups[name] = Statistics(mean, deviation, counts, one.cases, one.largest)
        done = sum(one.cases for one in groups.values())
        return Reduced(groups, done, self._cost, self._made, self._whole.dry_run, self._kept)


def _both(first: _Group, second: _Group, count: int) -> _Group:
    known = first.largest or second.largest
    if first.largest is not None and second.largest is not None:
        known = merged(first.largest, second.largest, count)
    return _Group(joined(first.moments, second.moments), first.cases + second.cases, known)


def _ranked(parts: Sequence[pb.LargestActivations], first: int) -> Ranked:
    """The largest values of one site and layer; `first` is the case with which the request begins."""
    shape = tuple(parts[0].shape)
    size = math.prod(shape)
    values = np.full(size, np.nan, np.float32)
    cases: npt.NDArray[np.int64] = np.full(size, -1, np.int64)
    positions: npt.NDArray[np.int64] = np.full(size, -1, np.int64)
    arrived = 0
    for part in parts:
        columns = [from_tensor(getattr(part, name)).reshape(-1) for name in ("values", "cases", "positions")]
        end = part.offset + len(columns[0])
        if tuple(part.shape) != shape or end > size or len({len(column) for column in columns}) > 1:
            raise ProtocolError(f"the answer has largest values outside their array, at offset {part.offset}")
        values[part.offset : end], positions[part.offset : end] = columns[0], columns[2]
        cases[part.offset : end] = columns[1]
        arrived += len(columns[0])
    if arrived < size:
        raise missing(f"only {arrived} of {size} largest values arrived")
    cases[cases >= 0] += first
    return Ranked(values.reshape(shape), cases.reshape(shape), positions.reshape(shape))


def _text(case: Any) -> str:
    content = case.whole_prompt.content
    if isinstance(content, Chat):
        return "\n".join(f"{role}: {said}" for role, said in content.turns)
    return content if isinstance(content, str) else " ".join(map(str, content))
