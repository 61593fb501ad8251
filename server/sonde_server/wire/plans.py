"""Plans: the runs of an Intervene."""

from collections.abc import Sequence
from dataclasses import replace

from sonde.v1 import inspection_pb2 as pb

from ..questions.edits import Edit
from ..questions.places import LAYERLESS
from ..questions.plans import Axis, Intervention, Sweep
from .edits import Scene, read_edit
from .fields import MOST_EDITS, MOST_LISTED, Reader
from .sites import Role


def read_plan(request: pb.InterveneRequest, reader: Reader, scene: Scene) -> tuple[Intervention, ...] | Sweep:
    """The runs of an Intervene: a list, or a sweep."""
    match request.WhichOneof("plan"):
        case "list":
            interventions = request.list.interventions
            if not interventions:
                reader.problems.add("list.interventions", "no intervention was given; give at least one")
            path = "list.interventions"
            if not reader.runs(len(interventions), "list"):
                return ()
            edits = sum(len(intervention.edits) for intervention in interventions)
            if not reader.listed(edits, MOST_EDITS, path, "edits"):
                return ()
            return tuple(_read_intervention(one, f"{path}[{i}]", reader, scene) for i, one in enumerate(interventions))
        case "sweep":
            return _read_sweep(request.sweep, "sweep", reader, scene) or ()
        case _:
            reader.problems.add("plan", "no plan was given; give a list or a sweep")
            return ()


def _read_intervention(message: pb.Intervention, path: str, reader: Reader, scene: Scene) -> Intervention:
    if not message.edits:
        reader.problems.add(f"{path}.edits", "no edit was given; give at least one")
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
        reader.problems.add(f"{path}.edit", "the edit is missing; say what to do at each place")
        return None
    swept = replace(scene, role=Role.SWEEP, together=together)
    edit = read_edit(message.edit, f"{path}.edit", reader, swept)
    if edit is None:
        return None
    site = edit.site
    if message.HasField("layer_window") and site.component in LAYERLESS:
        reader.problems.add(f"{path}.layer_window", f"{site.component.name} takes no layer; leave it unset")
    return Sweep(edit, site.layers, site.units, site.positions, together, window, always)


def _read_together(values: Sequence[int], path: str, reader: Reader) -> frozenset[Axis]:
    axes: list[int | None] = []
    if not reader.listed(len(values), MOST_LISTED, path, "axes"):
        return frozenset()
    for i, value in enumerate(values):
        known = value in tuple(Axis)
        if not known:
            reader.problems.add(f"{path}[{i}]", f"axis {value} is not known; there are LAYER, UNIT and POSITION")
        axes.append(value if known else None)
    return frozenset(Axis(axis) for axis in reader.distinct(axes, path, "axis"))
