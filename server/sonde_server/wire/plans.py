"""Plans: the runs of an Intervene."""

from collections.abc import Sequence
from dataclasses import replace

from sonde.v1 import inspection_pb2 as pb

from ..questions.edits import Edit
from ..questions.places import LAYERLESS
from ..questions.plans import Axis, Intervention, InterventionList, Plan, Sweep
from .circuits import read_circuits
from .edits import Scene, read_edit
from .fields import MOST_EDITS, MOST_LISTED, Reader
from .sites import Role


def read_plan(request: pb.InterveneRequest, reader: Reader, scene: Scene) -> Plan | None:
    """The runs of an Intervene over one prompt. None where they are faulty."""
    match request.WhichOneof("plan"):
        case "list":
            return _read_list(request.list, "list", reader, scene)
        case "sweep":
            return _read_sweep(request.sweep, "sweep", reader, scene)
        case "circuits":
            if scene.generating:
                reader.problems.add(
                    "circuits", "expected a list or a sweep, because the runs are continued, got circuits"
                )
            return read_circuits(request.circuits, "circuits", reader, scene.prompt, scene.sources)
        case _:
            reader.problems.add("plan", "expected a list, a sweep, circuits or causal_scrubbing, got none")
            return None


def _read_list(message: pb.InterventionList, path: str, reader: Reader, scene: Scene) -> InterventionList | None:
    interventions, field = message.interventions, f"{path}.interventions"
    if not interventions:
        reader.problems.add(field, "expected at least one intervention, got none")
    if not reader.runs(len(interventions), path):
        return None
    edits = sum(len(intervention.edits) for intervention in interventions)
    if not reader.listed(edits, MOST_EDITS, field, "edits"):
        return None
    read = [_read_intervention(one, f"{field}[{i}]", reader, scene) for i, one in enumerate(interventions)]
    return InterventionList(tuple(read))


def _read_intervention(message: pb.Intervention, path: str, reader: Reader, scene: Scene) -> Intervention:
    if not message.edits:
        reader.problems.add(f"{path}.edits", "expected at least one edit, got none")
    return Intervention(_read_edits(message.edits, f"{path}.edits", reader, scene))


def _read_edits(messages: Sequence[pb.Edit], path: str, reader: Reader, scene: Scene) -> tuple[Edit, ...]:
    edits = [read_edit(edit, f"{path}[{i}]", reader, scene) for i, edit in enumerate(messages)]
    return tuple(edit for edit in edits if edit is not None)


def _read_sweep(message: pb.Sweep, path: str, reader: Reader, scene: Scene) -> Sweep | None:
    together = _read_together(message.together, f"{path}.together", reader)
    window = 1
    if message.HasField("layer_window"):
        window = reader.at_least_one(message.layer_window, f"{path}.layer_window")
    always = _read_edits(message.always, f"{path}.always", reader, scene)
    if not message.HasField("edit"):
        reader.problems.add(f"{path}.edit", "expected an edit, which is made at each place, got none")
        return None
    swept = replace(scene, role=Role.SWEEP, together=together)
    edit = read_edit(message.edit, f"{path}.edit", reader, swept)
    if edit is None:
        return None
    site = edit.site
    if message.HasField("layer_window") and site.component in LAYERLESS:
        reader.problems.add(
            f"{path}.layer_window",
            f"expected no layer_window, because {site.component.name} has no layers, got {message.layer_window}",
        )
    return Sweep(edit, together, window, always)


def _read_together(values: Sequence[int], path: str, reader: Reader) -> frozenset[Axis]:
    axes: list[int | None] = []
    if not reader.listed(len(values), MOST_LISTED, path, "axes"):
        return frozenset()
    for i, value in enumerate(values):
        known = value in tuple(Axis)
        if not known:
            reader.problems.add(f"{path}[{i}]", f"expected LAYER, UNIT or POSITION, got axis {value}")
        axes.append(value if known else None)
    return frozenset(Axis(axis) for axis in reader.distinct(axes, path, "axis"))
