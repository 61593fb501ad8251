"""Joins the messages of a stream field by field, and refuses a stream that leaves something out.

An assembler is fed every message in turn. `partial()` is what is known so far, NaN where nothing has come yet;
`result()` is the whole, or a ProtocolError that says what is missing.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sonde.arrays import Axes, Booleans, Label
from sonde.errors import ProtocolError
from sonde.names import WITHOUT_LAYER, FinishReason
from sonde.requests import Site
from sonde.results import (
    Captured,
    Continuation,
    Cost,
    InterventionResult,
    Prediction,
    Provenance,
    Result,
    Token,
    TokenPrediction,
    captured_axes,
)
from sonde.tensors import from_tensor
from sonde.v1 import inspection_pb2 as pb

ResponseT_contra = TypeVar("ResponseT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)
CLEAN: Final = -1
"""The number of the unchanged run."""


class Assembler(Protocol[ResponseT_contra, ResultT_co]):
    """What a client needs to read a stream."""

    progress: tuple[int, int]

    def feed(self, message: ResponseT_contra) -> None:
        """Take the next message."""

    def partial(self) -> ResultT_co | None:
        """What is known so far; None before the first message."""

    @abstractmethod
    def result(self) -> ResultT_co:
        """The whole answer."""


# ---------------------------------------------------------------------- parts


def missing(what: str) -> ProtocolError:
    """The error for a stream that ended too early."""
    return ProtocolError(f"the answer ended early: {what}")


def token(message: pb.Token) -> Token:
    """A token of an answer."""
    return Token(message.id, message.text)


def provenance(message: pb.Provenance) -> Provenance:
    """What made the numbers."""
    name = pb.DataType.Name(message.data_type) if message.data_type in pb.DataType.values() else "unknown"
    dtype = name.removeprefix("DATA_TYPE_").lower()
    return Provenance(message.model, message.revision, dtype, message.device, message.attention, message.server_version)


class Grid:
    """Arrays whose first axes are named by labels, joined from parts that list their own labels."""

    def __init__(self, name: str, orders: Sequence[Sequence[int] | None]) -> None:
        """Each axis has its labels in the order wanted, or None for all that come, in ascending order."""
        self._name = name
        self._orders = orders
        self._parts: list[tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.generic]]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, labels: Sequence[Sequence[int]], tensor: pb.Tensor) -> None:
        """Take a part.

        Raises:
            ProtocolError: if it does not fit its labels or the parts before it.
        """
        array = from_tensor(tensor)
        part = tuple(tuple(axis) for axis in labels)
        if array.shape[: len(part)] != tuple(map(len, part)) or (
            self._parts and self._parts[0][1].shape[len(part) :] != array.shape[len(part) :]
        ):
            raise ProtocolError(f"the answer has {self._name} of shape {list(array.shape)} for {list(map(len, part))}")
        self._parts.append((part, array))

    def join(self) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.generic], Booleans]:
        """The labels of each axis, the whole array, and which of its cells have come."""
        axes: list[tuple[int, ...]] = []
        for i, order in enumerate(self._orders):
            found = sorted({label for part, _ in self._parts for label in part[i]})
            axes.append(tuple(found if order is None else dict.fromkeys(order)))
        sample = self._parts[0][1]
        shape = tuple(map(len, axes))
        whole = np.full(shape + sample.shape[len(axes) :], np.nan if sample.dtype.kind == "f" else -1, sample.dtype)
        arrived = np.zeros(shape, np.bool_)
        places = [{label: i for i, label in enumerate(axis)} for axis in axes]
        for part, array in self._parts:
            try:
                cells = np.ix_(*([place[label] for label in axis] for place, axis in zip(places, part, strict=True)))
            except KeyError as error:
                raise ProtocolError(f"the answer has {self._name} at {error}, which was not asked for") from None
            whole[cells] = array
            arrived[cells] = True
        return tuple(axes), whole, arrived


class Context:
    """The first message's context, resolved."""

    def __init__(self, message: pb.RunContext, *, dry_run: bool) -> None:
        if not dry_run and not message.HasField("clean"):
            raise ProtocolError("the answer's context has no unchanged run")
        self.message = message
        self.dry_run = dry_run
        self.tokens = tuple(map(token, message.tokens))
        self.targets = tuple(map(token, message.targets))
        cost = message.cost
        self.cost = Cost(cost.runs, cost.token_layers, cost.full_token_layers, cost.answer_bytes)
        self.provenance = provenance(message.provenance)

    def texts(self) -> dict[int, str]:
        """The texts of the ids that it names."""
        clean = self.message.clean
        return {t.id: t.text for t in (*self.message.tokens, *self.message.targets, *clean.top_tokens)}

    def positions(self, given: Iterable[int]) -> tuple[int, ...] | None:
        """The positions asked for, counted from 0, without repetition; None if none were."""
        resolved = tuple(dict.fromkeys(p + len(self.tokens) if p < 0 else p for p in given))
        return resolved or None

    def result(self, activations: Captured, continuation: Continuation | None = None) -> Result:
        """What every answer has."""
        clean = None if self.dry_run else self._prediction(activations, continuation)
        return Result(self.tokens, self.targets, self.message.position, self.cost, self.provenance, self.dry_run, clean)

    def _prediction(self, activations: Captured, continuation: Continuation | None) -> Prediction:
        clean = self.message.clean
        counts = len(clean.log_probabilities), len(clean.logits), len(self.targets)
        if len(set(counts)) != 1 or len(clean.top_tokens) != len(clean.top_log_probabilities):
            raise ProtocolError("the answer's unchanged run does not fit its targets or its top tokens")
        return Prediction(
            self.targets,
            np.array(clean.log_probabilities, np.float32),
            np.array(clean.logits, np.float32),
            tuple(
                TokenPrediction(t.id, t.text, p)
                for t, p in zip(clean.top_tokens, clean.top_log_probabilities, strict=True)
            ),
            activations,
            continuation,
        )


class Values:
    """Activations in slices, each of a run, a site and a layer."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)
        self._flat: dict[tuple[int, int, int], tuple[tuple[int, ...], npt.NDArray[np.generic], Booleans]] = {}

    def add(self, part: pb.ActivationSlice) -> None:
        """Take a slice.

        Raises:
            ProtocolError: if it does not lie within what it is a part of.
        """
        values, shape = from_tensor(part.values).reshape(-1), tuple(part.shape)
        size, end = math.prod(shape), part.offset + part.values.shape[0] if part.values.shape else part.offset + 1
        key = (part.run, part.site, part.layer)
        if not (0 <= part.site < len(self._sites) and min(shape, default=0) >= 0 <= part.offset and end <= size):
            raise ProtocolError(f"the answer has activations that lie nowhere: site {part.site}, offset {part.offset}")
        if key not in self._flat:
            empty = np.nan if values.dtype.kind == "f" else -1
            self._flat[key] = (shape, np.full(size, empty, values.dtype), np.zeros(size, np.bool_))
        known, flat, arrived = self._flat[key]
        if known != shape or flat.dtype != values.dtype:
            raise ProtocolError(f"the answer has activations of two shapes or types at site {part.site}")
        flat[part.offset : end] = values
        arrived[part.offset : end] = True

    def captured(self, run: int) -> Captured:
        """What one run has so far."""
        arrays: list[tuple[Axes, npt.NDArray[np.generic]]] = []
        for index, site in enumerate(self._sites):
            layers = sorted(layer for r, s, layer in self._flat if (r, s) == (run, index))
            if site.layers:
                layers = [layer for layer in dict.fromkeys(site.layers) if layer in layers]
            parts = [self._flat[run, index, layer] for layer in layers]
            if not parts:
                break
            if len({shape for shape, _, _ in parts}) > 1:
                raise ProtocolError(f"the answer has activations whose shape differs by layer at site {index}")
            shape = parts[0][0]
            stacked = np.stack([flat.reshape(shape) for _, flat, _ in parts])
            axes = captured_axes(site.component, layers, shape)
            arrays.append((axes, stacked[0] if site.component in WITHOUT_LAYER else stacked))
        return Captured(self._sites, arrays)

    def check(self, runs: Iterable[int]) -> None:
        """Refuse what is not whole.

        Raises:
            ProtocolError: naming the run and site.
        """
        for run in runs:
            for index, site in enumerate(self._sites):
                layers = {layer for r, s, layer in self._flat if (r, s) == (run, index)}
                wanted = layers if site.component in WITHOUT_LAYER else set(site.layers) or layers
                whole = all(self._flat[run, index, layer][2].all() for layer in layers)
                if not layers or not wanted <= layers or not whole:
                    raise missing(f"activations of run {run} at site {index} ({site.component})")


class Continuations:
    """Generated tokens in slices, each of a run."""

    _REASONS: Mapping[int, FinishReason] = {
        pb.Generated.FINISH_REASON_LENGTH: "length",
        pb.Generated.FINISH_REASON_END_TOKEN: "end_token",
    }

    def __init__(self) -> None:
        self._parts: dict[int, dict[int, pb.Generated]] = {}

    def add(self, part: pb.Generated) -> None:
        """Take a slice. One that only ends the run has no tokens, and counts beside the one at the same offset."""
        parts = self._parts.setdefault(part.run, {})
        offset = part.offset
        if offset in parts and part.tokens and parts[offset].tokens:
            raise ProtocolError(f"the answer has generated token {offset} of run {part.run} twice")
        if offset in parts:
            joined = pb.Generated()
            joined.CopyFrom(parts[offset])
            joined.MergeFrom(part)
            joined.text = parts[offset].text + part.text
            part = joined
        parts[offset] = part

    def of(self, run: int) -> Continuation | None:
        """What a run has said so far, up to the first gap."""
        parts = self._parts.get(run)
        if parts is None:
            return None
        tokens: list[Token] = []
        text = ""
        reason: FinishReason | None = None
        for offset in sorted(parts):
            if offset != len(tokens):
                break
            tokens.extend(map(token, parts[offset].tokens))
            text += parts[offset].text
            if parts[offset].finish_reason in self._REASONS:
                reason = self._REASONS[parts[offset].finish_reason]
        return Continuation(tuple(tokens), text, reason)

    def check(self, runs: Iterable[int]) -> None:
        """Refuse a run that has not ended.

        Raises:
            ProtocolError: naming the run.
        """
        for run in runs:
            said = self.of(run)
            if said is None or said.finish_reason is None:
                raise missing(f"the generated tokens of run {run}")


class Stream:
    """What the streams of both methods share."""

    def __init__(self, *, dry_run: bool) -> None:
        self.progress = (0, 0)
        self._dry_run = dry_run
        self._context: Context | None = None

    def _start(self, message: pb.TraceResponse | pb.InterveneResponse) -> Context:
        if message.HasField("context"):
            if self._context is not None:
                raise ProtocolError("the answer has its context twice")
            self._context = Context(message.context, dry_run=self._dry_run)
        if self._context is None:
            raise ProtocolError("the answer does not begin with its context")
        if message.HasField("progress"):
            self.progress = (message.progress.done, message.progress.total)
        return self._context

    def _require(self) -> Context:
        if self._context is None:
            raise missing("no message at all")
        return self._context


# ---------------------------------------------------------------------- Intervene


class InterveneAssembler(Stream):
    """Joins the answer to one InterveneRequest."""

    _COLUMNS: Final = (
        "log_probabilities",
        "logits",
        "kl_divergences",
        "top_token_ids",
        "top_log_probabilities",
        "edit_norms",
    )

    def __init__(self, request: pb.InterveneRequest, sites: Sequence[Site]) -> None:
        super().__init__(dry_run=request.dry_run)
        self._request = request
        self._values = Values(sites)
        self._sites = sites
        self._continuations = Continuations()
        self._axes: dict[str, tuple[Label, ...]] = {}
        self._columns: dict[str, npt.NDArray[np.generic]] = {}
        self._filled: dict[str, Booleans] = {}
        self._texts: dict[int, str] = {}

    def feed(self, message: pb.InterveneResponse) -> None:
        """Take the next message."""
        first = self._context is None
        context = self._start(message)
        if first:
            self._axes = self._resolve_axes(context)
            self._texts = context.texts()
        if message.HasField("readings"):
            self._take(message.readings)
        for part in message.activations:
            self._values.add(part)
        for generated in message.generated:
            self._continuations.add(generated)

    def partial(self) -> InterventionResult | None:
        """What is known so far, over the same memory as the results before and after it."""
        return None if self._context is None else self._build(self._context)

    def result(self) -> InterventionResult:
        """The whole answer."""
        context = self._require()
        if not self._dry_run:
            runs = self._runs
            for name in ("log_probabilities", "logits", *self._filled):
                filled = self._filled.get(name)
                arrived = 0 if filled is None else int(filled.sum())
                if arrived < runs:
                    raise missing(f"{name.replace('_', ' ')} of {arrived} of {runs} runs came")
            if self._sites:
                self._values.check(range(CLEAN, runs))
            if self._request.readout.HasField("generation"):
                self._continuations.check(range(CLEAN, runs))
        return self._build(context)

    @property
    def _runs(self) -> int:
        return math.prod(map(len, self._axes.values()))

    def _resolve_axes(self, context: Context) -> dict[str, tuple[Label, ...]]:
        if self._request.WhichOneof("plan") != "sweep":
            return {"run": tuple(range(len(self._request.list.interventions)))}
        sweep, axes = self._request.sweep, context.message.axes
        site = sweep.edit.site
        if site.HasField("from_position"):
            positions: tuple[Label, ...] = (f"{site.from_position}:",)
        else:
            positions = _axis_labels(axes.positions, site.positions, together=pb.AXIS_POSITION in sweep.together)
        return {
            "layer": _axis_labels(axes.layers, site.layers, together=pb.AXIS_LAYER in sweep.together),
            "unit": _axis_labels(axes.units, site.units, together=pb.AXIS_UNIT in sweep.together),
            "position": positions,
        }

    def _take(self, readings: pb.Readings) -> None:
        start, count, runs = readings.offset, readings.count, self._runs
        if not 0 <= start <= start + count <= runs:
            raise ProtocolError(f"the answer has runs {start} to {start + count} of {runs}")
        for name in self._COLUMNS:
            if not readings.HasField(name):
                continue
            part = from_tensor(getattr(readings, name))
            if part.shape[:1] != (count,):
                raise ProtocolError(f"the answer has {name} of shape {list(part.shape)} for {count} runs")
            if name not in self._columns:
                empty = np.nan if part.dtype.kind == "f" else -1
                self._columns[name] = np.full((runs, *part.shape[1:]), empty, part.dtype)
                self._filled[name] = np.zeros(runs, np.bool_)
            if part.shape[1:] != self._columns[name].shape[1:]:
                raise ProtocolError(f"the answer has {name} of different widths")
            self._columns[name][start : start + count] = part
            self._filled[name][start : start + count] = True
        self._texts.update(readings.token_texts)

    def _column(self, name: str, width: int | None = None) -> npt.NDArray[np.generic] | None:
        found = self._columns.get(name)
        shape = tuple(map(len, self._axes.values()))
        if found is None:
            if width is None:
                return None
            return np.full((*shape, width), np.nan, np.float32)
        if width and found.shape[1:] != (width,):
            raise ProtocolError(f"the answer has {name} of shape {list(found.shape)} for {width} targets")
        return found.reshape(shape + found.shape[1:])

    def _build(self, context: Context) -> InterventionResult:
        targets = len(context.targets)
        filled = self._filled.get("log_probabilities")
        shape = tuple(map(len, self._axes.values()))
        clean_said = self._continuations.of(CLEAN)
        base = context.result(self._values.captured(CLEAN), clean_said)
        generating = self._request.readout.HasField("generation")
        return InterventionResult(
            *base.common,
            axes=self._axes | {"target": tuple(t.text for t in context.targets)},
            log_probabilities=_float32(self._column("log_probabilities", targets)),
            logits=_float32(self._column("logits", targets)),
            kl_divergences=None if "kl_divergences" not in self._columns else _float32(self._column("kl_divergences")),
            edit_norms=None if "edit_norms" not in self._columns else _float32(self._column("edit_norms")),
            top_token_ids=_int64(self._column("top_token_ids", 0)),
            top_log_probabilities=_float32(self._column("top_log_probabilities", 0)),
            arrived=np.zeros(shape, np.bool_) if filled is None else filled.reshape(shape),
            _texts=self._texts,
            _activations=[self._values.captured(run) for run in range(self._runs)] if self._sites else (),
            _continuations=[self._continuations.of(run) for run in range(self._runs)] if generating else (),
        )


def _axis_labels(resolved: Sequence[int], asked: Sequence[int], *, together: bool) -> tuple[Label, ...]:
    """One label per entry; a single one, such as `0-7` or `all`, for what every run takes together."""
    if resolved and not together:
        return tuple(resolved)
    several = list(resolved or asked)
    if not several:
        return ("all",)
    if len(several) == 1:
        return (several[0],)
    contiguous = several == list(range(several[0], several[-1] + 1))
    return (f"{several[0]}-{several[-1]}" if contiguous else ",".join(map(str, several)),)


def _float32(array: npt.NDArray[np.generic] | None) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.generic]", array).astype(np.float32, copy=False)


def _int64(array: npt.NDArray[np.generic] | None) -> npt.NDArray[np.int64]:
    return cast("npt.NDArray[np.generic]", array).astype(np.int64)
