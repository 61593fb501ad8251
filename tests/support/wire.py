"""Requests and answers in the raw generated code, so that these tests rest on no client.

Requests are built from the oracle's structures; `join_intervene` and `join_trace` put a stream's slices together as the
contract says: `context` from the first message, of `progress` the last, everything else where it says it belongs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2, status_pb2
from sonde.v1 import inspection_pb2 as pb

from tests.support import oracle
from tests.support.oracle import Edit, Site, Sweep, Target

DATA_TYPES: dict[int, str] = {
    pb.DATA_TYPE_FLOAT32: "<f4",
    pb.DATA_TYPE_FLOAT16: "<f2",
    pb.DATA_TYPE_INT32: "<i4",
    pb.DATA_TYPE_INT64: "<i8",
}


def component(name: str) -> "pb.Component.ValueType":
    """The enum's value of a name without its prefix."""
    return pb.Component.Value(f"COMPONENT_{name}")


def tensor(value: npt.ArrayLike) -> pb.Tensor:
    """A float32 tensor message."""
    array = np.asarray(value, dtype="<f4")
    return pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes())


def array(message: pb.Tensor) -> npt.NDArray[Any]:
    """A tensor message as numpy; also checks that its bytes fit its shape."""
    if message.data_type == pb.DATA_TYPE_BFLOAT16:
        values: npt.NDArray[Any] = (np.frombuffer(message.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(message.data, dtype=DATA_TYPES[message.data_type])
    return values.reshape(tuple(message.shape))


def prompt(value: str | Sequence[int]) -> pb.Prompt:
    """A prompt of text or of token ids, with the picture that may be among them."""
    if isinstance(value, str):
        return pb.Prompt(text=value)
    return pb.Prompt(token_ids=pb.TokenIds(ids=value), image=getattr(value, "image", b""))


def target(value: Target) -> pb.Target:
    """A target by id."""
    return (
        pb.Target(id=value.token) if value.contrast is None else pb.Target(id=value.token, contrast_id=value.contrast)
    )


def site(value: Site) -> pb.Site:
    """A site of the decoder."""
    return pb.Site(
        component=component(value.component),
        layers=value.layers,
        units=value.units,
        positions=value.positions,
        from_position=value.from_position,
    )


def edit(value: Edit) -> pb.Edit:  # noqa: PLR0911 - one per operation
    """An edit with its operation."""
    place = site(value.site)
    match value.operation:
        case oracle.Scale(factor):
            return pb.Edit(site=place, scale=factor)
        case oracle.Set(values):
            return pb.Edit(site=place, set=tensor(values))
        case oracle.Add(values):
            return pb.Edit(site=place, add=tensor(values))
        case oracle.Multiply(values):
            return pb.Edit(site=place, multiply=tensor(values))
        case oracle.ProjectOut(values):
            return pb.Edit(site=place, project_out=tensor(values))
        case oracle.Patch(sources, source_positions, layer):
            patch = pb.Patch(sources=sources, source_positions=source_positions, source_layer=layer)
            return pb.Edit(site=place, patch=patch)
        case oracle.Noise(deviation, seed):
            return pb.Edit(site=place, noise=pb.Noise(standard_deviation=deviation, seed=seed))
        case oracle.Knockout(keys):
            return pb.Edit(site=place, knockout=pb.Knockout(key_positions=keys))
    raise TypeError(value)


def interventions(plan: Sequence[Sequence[Edit]]) -> pb.InterventionList:
    """A list of runs, each a list of edits."""
    return pb.InterventionList(interventions=[pb.Intervention(edits=[edit(one) for one in run]) for run in plan])


def sweep(value: Sweep) -> pb.Sweep:
    """A sweep message."""
    return pb.Sweep(
        edit=edit(value.edit),
        together=[pb.Axis.Value(f"AXIS_{axis}") for axis in sorted(value.together)],
        layer_window=value.layer_window,
        always=[edit(one) for one in value.always],
    )


def intervene(
    value: str | Sequence[int],
    plan: Sequence[Sequence[Edit]] | Sweep,
    targets: Sequence[Target] = (),
    sources: Sequence[Sequence[int]] = (),
    **readout: Any,
) -> pb.InterveneRequest:
    """An InterveneRequest; further arguments are fields of the readout."""
    request = pb.InterveneRequest(
        prompt=prompt(value),
        sources=[prompt(source) for source in sources],
        readout=pb.Readout(targets=[target(one) for one in targets], **readout),
    )
    if isinstance(plan, Sweep):
        request.sweep.CopyFrom(sweep(plan))
    else:
        request.list.CopyFrom(interventions(plan))
    return request


End = tuple[str, int, int]
"""Of an edge: component, layer and head."""


@dataclass
class Answer:
    """A joined stream."""

    context: pb.RunContext
    messages: int
    sizes: list[int]
    progress: pb.Progress | None = None
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Readings by field, or the layers' by field."""
    activations: dict[tuple[int, int, int], npt.NDArray[Any]] = field(default_factory=dict)
    """By run, site and layer."""
    token_texts: dict[int, str] = field(default_factory=dict)
    samples: "dict[tuple[int, int], Said]" = field(default_factory=dict)
    """What each run went on to say, by run and sample; the run -1 is the unchanged one."""
    corruption: pb.Corruption | None = None
    cells: dict[str, dict[tuple[int, int], dict[str, npt.NDArray[Any]]]] = field(default_factory=dict)
    """Of grids: by component and (position, layer), each field by target; layer -1 where there is none."""
    estimates: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """By component: [layers, positions, targets], or with units before the targets."""
    edges: dict[tuple[End, End], npt.NDArray[Any]] = field(default_factory=dict)
    """By sender and receiver, in the order of the answer."""
    verified: list[pb.VerifiedEffect] = field(default_factory=list)

    @property
    def said(self) -> "dict[int, Said]":
        """The first sample of each run."""
        return {run: said for (run, sample), said in self.samples.items() if not sample}

    def grid(self, name: str, column: str, layers: Sequence[int], positions: Sequence[int]) -> npt.NDArray[Any]:
        """[positions, layers, ...] of one field of one component."""
        cells = self.cells[name]
        return np.array([[cells[position, layer][column] for layer in layers] for position in positions])


@dataclass
class Said:
    """A joined continuation."""

    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Each token's own."""
    text: str = ""
    finish_reason: int = 0
    log_probabilities: list[float] = field(default_factory=list)
    read: list[list[pb.Tensor]] = field(default_factory=list)
    """Activations by part and site."""

    def put(self, part: pb.Generated) -> None:
        assert part.offset == len(self.tokens), f"a part begins at {part.offset}, {len(self.tokens)} tokens came"
        assert not self.finish_reason, "a part follows upon the last"
        self.tokens += [token.id for token in part.tokens]
        self.texts += [token.text for token in part.tokens]
        self.text += part.text
        self.finish_reason = part.finish_reason
        self.log_probabilities += part.log_probabilities
        self.read.append(list(part.activations))

    def activations(self, site: int) -> npt.NDArray[Any]:
        """[layers, tokens, ...] of one site."""
        return np.concatenate([array(tensors[site]) for tensors in self.read], axis=1)


READINGS = (
    "log_probabilities", "logits", "kl_divergences", "top_token_ids", "top_log_probabilities", "edit_norms",
    "probabilities",
)  # fmt: skip
LAYERS = (*READINGS[:5], "ranks", "gradient_norms", "probabilities")
GRID = ("probabilities", "deviations", "logits", "sample_probabilities")


class _Slices:
    """Collects the rows of columns, and checks that none is told twice."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, npt.NDArray[Any]]] = {}

    def put(self, name: str, places: Iterable[int], message: pb.Tensor) -> None:
        values, places = array(message), list(places)
        assert len(values) == len(places), f"{name}: {len(values)} rows for {len(places)} places"
        for place, row in zip(places, values, strict=True):
            assert place not in self.rows.setdefault(name, {}), f"{name}: row {place} came twice"
            self.rows[name][place] = row

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        for name, rows in self.rows.items():
            assert sorted(rows) == list(range(len(rows))), f"{name}: rows are missing"
        return {name: np.array([rows[index] for index in range(len(rows))]) for name, rows in self.rows.items()}


class _Activations:
    def __init__(self) -> None:
        self.parts: dict[tuple[int, int, int], list[tuple[int, npt.NDArray[Any]]]] = {}
        self.shapes: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def put(self, part: pb.ActivationSlice) -> None:
        key = (part.run, part.site, part.layer)
        assert self.shapes.setdefault(key, tuple(part.shape)) == tuple(part.shape)
        self.parts.setdefault(key, []).append((part.offset, array(part.values)))

    def joined(self) -> dict[tuple[int, int, int], npt.NDArray[Any]]:
        whole = {}
        for key, parts in self.parts.items():
            parts.sort(key=lambda part: part[0])
            at = 0
            for offset, values in parts:
                assert offset == at, f"activation {key}: a part begins at {offset}, the one before it ended at {at}"
                at += values.size
            whole[key] = np.concatenate([values for _, values in parts]).reshape(self.shapes[key])
        return whole


def _started(messages: Sequence[Any]) -> Answer:
    assert messages, "the stream is empty"
    assert messages[0].HasField("context"), "the first message has no context"
    assert not any(message.HasField("context") for message in messages[1:]), "the context came twice"
    told = [message.progress for message in messages if message.HasField("progress")]
    assert [one.done for one in told] == sorted(one.done for one in told), "the progress goes backwards"
    sizes = [message.ByteSize() for message in messages]
    return Answer(messages[0].context, len(messages), sizes, progress=told[-1] if told else None)


def join_intervene(stream: Iterable[pb.InterveneResponse]) -> Answer:
    """Joins the stream of Intervene."""
    messages = list(stream)
    answer, slices, activations = _started(messages), _Slices(), _Activations()
    for message in messages:
        readings: Any = message.readings
        places = range(readings.offset, readings.offset + readings.count)
        for name in READINGS:
            if readings.HasField(name):
                slices.put(name, places, getattr(readings, name))
        answer.token_texts.update(readings.token_texts)
        for part in message.activations:
            activations.put(part)
        for generated in message.generated:
            answer.samples.setdefault((generated.run, generated.sample), Said()).put(generated)
    answer.columns, answer.activations = slices.columns(), activations.joined()
    return answer


def join_trace(stream: Iterable[pb.TraceResponse]) -> Answer:
    """Joins the stream of Trace."""
    messages = list(stream)
    answer, slices, activations = _started(messages), _Slices(), _Activations()
    cells: dict[str, dict[tuple[int, int], npt.NDArray[Any]]] = {}
    for message in messages:
        layers: Any = message.layers
        for name in LAYERS:
            if layers.HasField(name):
                slices.put(name, layers.depths, getattr(layers, name))
        answer.token_texts.update(message.layers.token_texts)
        if message.HasField("corruption"):
            assert answer.corruption is None, "the corruption came twice"
            answer.corruption = message.corruption
        for grid in message.grids:
            _put_grid(answer, grid)
        for estimates in message.attributions:
            _put_estimates(answer, estimates, cells)
        for edges in message.edges:
            _put_edges(answer.edges, edges)
        answer.verified.extend(message.verified)
        for part in message.activations:
            activations.put(part)
    answer.columns, answer.activations = slices.columns(), activations.joined()
    for name, found in cells.items():
        layers, positions = (1 + max(place[axis] for place in found) for axis in (0, 1))
        assert len(found) == layers * positions, f"{name}: estimates are missing"
        answer.estimates[name] = np.array(
            [[found[layer, position] for position in range(positions)] for layer in range(layers)]
        )
    return answer


def _put_estimates(answer: Answer, part: Any, cells: dict[str, dict[tuple[int, int], npt.NDArray[Any]]]) -> None:
    name = _name(part.component)
    assert bool(part.layers) == (name not in oracle.UNLAYERED), f"{name}: layers {list(part.layers)}"
    found, values = cells.setdefault(name, {}), array(part.estimates)
    layers = list(part.layers) or [0]
    assert values.shape[:2] == (len(layers), len(part.positions)), f"{name}: estimates that do not fit their axes"
    assert values.shape[-1] == max(1, len(answer.context.targets))
    for row, layer in enumerate(layers):
        for column, position in enumerate(part.positions):
            assert (layer, position) not in found, f"{name}: {layer}, {position} came twice"
            found[layer, position] = values[row, column]


def join_edges(parts: Iterable[pb.EdgeAttributions]) -> dict[tuple[End, End], npt.NDArray[Any]]:
    """Estimates by sender and receiver, in the order of the answer."""
    found: dict[tuple[End, End], npt.NDArray[Any]] = {}
    for part in parts:
        _put_edges(found, part)
    return found


def _put_edges(into: dict[tuple[End, End], npt.NDArray[Any]], part: pb.EdgeAttributions) -> None:
    senders, receivers, values = array(part.senders), array(part.receivers), array(part.estimates)
    assert senders.shape == receivers.shape == (len(values), 3)
    assert part.offset == len(into), "edges came out of order"
    for sender, receiver, row in zip(senders.tolist(), receivers.tolist(), values, strict=True):
        edge = (_name(sender[0]), *sender[1:]), (_name(receiver[0]), *receiver[1:])
        assert edge not in into, f"the edge {edge} came twice"
        into[edge] = row


def _name(number: Any) -> str:
    return pb.Component.Name(number).removeprefix("COMPONENT_")


def _put_grid(answer: Answer, grid: Any) -> None:
    cells = answer.cells.setdefault(_name(grid.component), {})
    layers = list(grid.layers) or [-1]
    columns = {name: array(getattr(grid, name)) for name in GRID if grid.HasField(name)}
    for values in columns.values():
        assert values.shape[:2] == (len(grid.positions), len(layers)), "a grid's tensor does not fit its axes"
    for row, position in enumerate(grid.positions):
        for column, layer in enumerate(layers):
            assert (position, layer) not in cells, f"the cell {position}, {layer} came twice"
            cells[position, layer] = {name: values[row, column] for name, values in columns.items()}


@dataclass(frozen=True)
class Refusal:
    """What a refused request came back with."""

    code: grpc.StatusCode
    message: str
    violations: dict[str, str]
    """Description by field."""
    reasons: list[str]
    """Of each ErrorInfo."""


def refusal(call: Iterable[Any]) -> Refusal:
    """Runs a call that must fail, and unpacks the google.rpc.Status of its failure."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    violations: dict[str, str] = {}
    reasons = []
    for detail in status.details:
        if detail.Unpack(bad):
            violations.update({one.field: one.description for one in bad.field_violations})
        elif detail.Unpack(info):
            reasons.append(info.reason)
    return Refusal(error.code(), error.details() or "", violations, reasons)
