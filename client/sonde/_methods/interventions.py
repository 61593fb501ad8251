"""Interventions: encoding of the request, and the assembler of the answer."""

import math
from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from sonde._answers.circuits import Examples
from sonde._answers.interventions import InterventionResult
from sonde._answers.requests import Request
from sonde._arrays import Booleans, Label
from sonde._ask.cases import Cases
from sonde._ask.circuits import Circuits
from sonde._ask.given import flag, refusal, several
from sonde._ask.hypotheses import CausalScrubbing
from sonde._ask.indices import index
from sonde._ask.named import PositionLike
from sonde._ask.names import COMPONENT_AXES, COMPONENT_NAMES, DataTypeName, PoolingName
from sonde._ask.plans import Generation, Plan, Sweep, runs_of
from sonde._ask.prompts import Prompt, PromptLike, Targets
from sonde._ask.sites import Site
from sonde._wire.asked import record
from sonde._wire.assembly import Stream
from sonde._wire.context import Context
from sonde._wire.edits import EditEncoder
from sonde._wire.encoding import (
    decode_named,
    encode_data_type,
    encode_generation,
    encode_pooling,
    encode_site,
    encode_targets,
    write_asked,
    write_position,
)
from sonde._wire.parts import CLEAN, Continuations, Values, missing
from sonde._wire.plans import encode_circuits, encode_scrubbing
from sonde._wire.tensors import from_tensor
from sonde.errors import InvalidRequest, ProtocolError
from sonde.v1 import inspection_pb2 as pb


def intervene_request(  # noqa: PLR0913 - what one request can say, by keyword
    prompt: PromptLike | Cases,
    plan: Plan,
    *,
    targets: Targets,
    sources: Sequence[PromptLike],
    position: PositionLike | None,
    top_k: int,
    kl_divergence: bool,
    activations: Sequence[Site],
    generation: Generation | None,
    data_type: DataTypeName | None = None,
    pooling: PoolingName | None = None,
    reduction: pb.Reduction | None = None,
    dry_run: bool,
) -> pb.InterveneRequest:
    """Encode the request of `Client.intervene`.

    Raises:
        InvalidRequest: if an argument is wrong in a way that does not depend on the model.
    """
    if isinstance(sources, str | Prompt):
        raise refusal("sources", "a list of prompts", sources)
    edits = EditEncoder(several(sources, "sources", "a list of prompts"))
    given = len(edits.sources)
    request = pb.InterveneRequest(dry_run=flag(dry_run, "dry_run"), reduction=reduction)
    write_asked(prompt, request)
    if isinstance(plan, Sweep):
        request.sweep.CopyFrom(edits.sweep(plan))
    elif isinstance(plan, Circuits):
        request.circuits.CopyFrom(encode_circuits(plan, edits))
    elif isinstance(plan, CausalScrubbing):
        request.causal_scrubbing.CopyFrom(encode_scrubbing(plan))
    else:
        request.list.interventions.extend(map(edits.intervention, runs_of(plan)))
        request.list.SetInParent()
    request.sources.extend(edits.sources)
    if len(edits.sources) > given and any(case.sources for case in request.cases):
        raise InvalidRequest.at("sources", "expected patches that name the sources of the cases by index, got a prompt")
    readout = request.readout
    readout.targets.extend(encode_targets(targets))
    write_position(position, readout)
    readout.top_k = index(top_k, "top_k")
    readout.kl_divergence = flag(kl_divergence, "kl_divergence")
    readout.activations.extend(map(encode_site, activations))
    readout.activations_data_type = encode_data_type(data_type)
    readout.pooling = encode_pooling(pooling)
    if generation is not None:
        readout.generation.CopyFrom(encode_generation(generation))
    return request


class InterveneAssembler(Stream):
    """Joins the answer to a call of `intervene`."""

    _COLUMNS: Final = (
        "log_probabilities",
        "logits",
        "kl_divergences",
        "top_token_ids",
        "top_log_probabilities",
        "edit_norms",
        "probabilities",
        "draws",
    )

    def __init__(
        self,
        request: pb.InterveneRequest,
        sites: Sequence[Site],
        generated_sites: Sequence[Site] = (),
        asked: Request | None = None,
    ) -> None:
        super().__init__(dry_run=request.dry_run, asked=asked or record(request))
        self._request = request
        by_row = request.HasField("reduction") or request.readout.pooling != pb.POOLING_UNSPECIFIED
        self._values = Values(sites, by_row=by_row)
        self._sites = sites
        self._continuations = Continuations(request.readout.generation, generated_sites)
        self._axes: dict[str, tuple[Label, ...]] = {}
        self._columns: dict[str, npt.NDArray[np.generic]] = {}
        self._filled: dict[str, Booleans] = {}
        self._texts: dict[int, str] = {}
        self._examples: list[pb.Readings] = []

    def feed(self, message: pb.InterveneResponse) -> None:
        """Take the next message."""
        first = self._context is None
        context = self._start(message)
        if first:
            self._axes = self._resolve_axes(context)
            self._texts = context.texts()
        if message.HasField("readings"):
            self._take(message.readings)
        if message.HasField("examples"):
            self._examples.append(message.examples)
        for part in message.activations:
            self._values.add(part)
        for generated in message.generated:
            self._continuations.add(generated)

    def partial(self) -> InterventionResult | None:
        """What is known so far; all partial results share memory. None before the first message."""
        return None if self._context is None else self._build(self._context)

    def result(self) -> InterventionResult:
        """The whole result.

        Raises:
            ProtocolError: if a part of it did not arrive.
        """
        context = self._require()
        if not self._dry_run:
            runs = self._runs
            for name in ("log_probabilities", "logits", *self._filled):
                filled = self._filled.get(name)
                arrived = 0 if filled is None else int(filled.sum())
                if arrived < runs:
                    raise missing(f"{name.replace('_', ' ')} of only {arrived} of {runs} runs arrived")
            if self._sites:
                self._values.check(range(CLEAN, runs))
            if self._request.readout.HasField("generation"):
                unchanged = not self._request.readout.generation.changed_only
                self._continuations.check(range(CLEAN if unchanged else 0, runs))
        return self._build(context)

    @property
    def _runs(self) -> int:
        return math.prod(map(len, self._axes.values()))

    def _resolve_axes(self, context: Context) -> dict[str, tuple[Label, ...]]:
        match self._request.WhichOneof("plan"):
            case "circuits":
                return {"size": tuple(self._request.circuits.sizes)}
            case "causal_scrubbing":
                plan = self._request.causal_scrubbing
                return {"draw": tuple(range(plan.samples or plan.draws.shape[1]))}
            case "list":
                return {"run": tuple(range(len(self._request.list.interventions)))}
        sweep, axes = self._request.sweep, context.message.axes
        site = sweep.edit.site
        if site.HasField("from_position"):
            positions: tuple[Label, ...] = (f"{site.from_position}:",)
        elif site.HasField("named_from_position"):
            positions = (f"{decode_named(site.named_from_position)}:",)
        elif site.named_positions:
            names = tuple(str(decode_named(name)) for name in site.named_positions)
            positions = (",".join(names),) if pb.AXIS_POSITION in sweep.together else names
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
        tokens = len(context.tokens)
        common = context.common(self._values.captured(CLEAN), self._continuations.of(CLEAN, tokens))
        generating = self._request.readout.HasField("generation")
        said = [self._continuations.of(run, tokens) for run in range(self._runs)] if generating else []
        return InterventionResult(
            **common,
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
            _continuations=[samples[0] if samples else None for samples in said],
            _further_samples=[samples[1:] for samples in said] if any(len(samples) > 1 for samples in said) else (),
            _unit_name=_unit_name(self._request.sweep.edit.site.component),
            draws=None if "draws" not in self._columns else _int64(self._column("draws")),
            examples=joined_examples(self._examples),
            listed=len(from_tensor(self._request.circuits.senders)) if "size" in self._axes else 0,
            _probabilities=_float32(self._column("probabilities", targets))
            if "probabilities" in self._columns
            else None,
        )


def joined_examples(parts: Sequence[pb.Readings]) -> Examples | None:
    """What was read of every example; None if the answer has none.

    Raises:
        ProtocolError: if a part is missing.
    """
    if not parts:
        return None
    parts = sorted(parts, key=lambda part: part.offset)
    following = 0
    for part in parts:
        if part.offset != following:
            raise ProtocolError(f"the answer has examples from {part.offset} on where {following} was expected")
        following += part.count
    log_probabilities = _float32(np.concatenate([from_tensor(part.log_probabilities) for part in parts]))
    logits = _float32(np.concatenate([from_tensor(part.logits) for part in parts]))
    kl = None
    if parts[0].HasField("kl_divergences"):
        kl = _float32(np.concatenate([from_tensor(part.kl_divergences) for part in parts]))
    return Examples(log_probabilities, logits, kl)


def _unit_name(component: pb.Component.ValueType) -> str:
    name = COMPONENT_NAMES.get(component)
    if name == "neuron":
        return "neuron"
    return "head" if name is not None and "head" in COMPONENT_AXES[name] else "unit"


def _axis_labels(resolved: Sequence[int], asked: Sequence[int], *, together: bool) -> tuple[Label, ...]:
    """Return one label per entry, or a single one, such as `0-7` or `all`, if each run edits the whole axis."""
    if resolved and not together:
        return tuple(resolved)
    several = list(resolved or asked)
    if not several:
        return ("all",)
    if len(several) == 1:
        return (several[0],)
    contiguous = several[0] >= 0 and several == list(range(several[0], several[-1] + 1))
    return (f"{several[0]}-{several[-1]}" if contiguous else ",".join(map(str, several)),)


def _float32(array: npt.NDArray[np.generic] | None) -> npt.NDArray[np.float32]:
    return cast("npt.NDArray[np.generic]", array).astype(np.float32, copy=False)


def _int64(array: npt.NDArray[np.generic] | None) -> npt.NDArray[np.int64]:
    return cast("npt.NDArray[np.generic]", array).astype(np.int64)
