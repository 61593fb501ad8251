"""Edits: what is done at a site, checked against the shape that one run selects there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.edits import Add, Edit, Knockout, Multiply, Noise, Operation, Patch, ProjectOut, Scale, Set
from ..questions.places import LAYERLESS, PAIRWISE, Component, Site
from ..questions.plans import Axis, one_site
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, Reader
from .sites import Role, read_site
from .tensors import check_broadcasts, decode_tensor

_OPERATIONS = "scale, set, add, multiply, patch, noise, project_out or knockout"


@dataclass(frozen=True, slots=True)
class Scene:
    """What an edit is read against: the prompt's length (None where it is faulty), the sources, and a sweep's axes.

    `generating`: its runs are continued, so that an edit may go on at positions behind the prompt.
    """

    tokens: int | None
    sources: Sequence[Prompt | None]
    role: Role = Role.EDIT
    together: frozenset[Axis] = frozenset()
    generating: bool = False


def read_edit(message: pb.Edit, path: str, reader: Reader, scene: Scene) -> Edit | None:
    """One edit; None where its site or its operation is faulty."""
    site = None
    if message.HasField("site"):
        site = read_site(message.site, f"{path}.site", reader, scene.tokens, scene.role)
    else:
        reader.problems.add(f"{path}.site", "the site is missing; say where to edit")
    kind = message.WhichOneof("operation")
    if kind is None:
        reader.problems.add(path, f"no operation was given; give {_OPERATIONS}")
        return None
    operation = _read_operation(message, kind, path, reader, site, scene)
    return None if site is None or operation is None else Edit(site, operation)


def _read_operation(
    message: pb.Edit, kind: str, path: str, reader: Reader, site: Site | None, scene: Scene
) -> Operation | None:
    field = f"{path}.{kind}"
    match kind:
        case "scale":
            if not math.isfinite(message.scale):
                reader.problems.add(field, f"{message.scale} is not a factor; give a finite number")
            return Scale(message.scale)
        case "patch":
            return _read_patch(message.patch, field, reader, site, scene)
        case "noise":
            return _read_noise(message.noise, field, reader, site)
        case "knockout":
            return _read_knockout(message.knockout, field, reader, site, scene)
        case _:
            return _read_values(message, kind, field, reader, site, scene)


def _read_values(
    message: pb.Edit, kind: str, path: str, reader: Reader, site: Site | None, scene: Scene
) -> Operation | None:
    tensors = {"set": message.set, "add": message.add, "multiply": message.multiply, "project_out": message.project_out}
    values = decode_tensor(tensors[kind], path, reader)
    if values is None:
        return None
    if site is not None and scene.tokens is not None:
        check_broadcasts(values, _selected_shape(site, scene.tokens, reader, scene), path, reader)
        _check_goes_on(values, kind, path, reader, site, scene)
    if kind == "project_out":
        nonzero = values.any(axis=-1) if values.ndim else values != 0
        if not np.all(nonzero):
            reader.problems.add(f"{path}.data", "a direction is zero along the last axis; give one that is not")
        return ProjectOut(values)
    if kind == "set":
        return Set(values)
    return Add(values) if kind == "add" else Multiply(values)


def _check_goes_on(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    kind: str,
    path: str,
    reader: Reader,
    site: Site,
    scene: Scene,
) -> None:
    """Behind the prompt there are more keys at every position, so scores and patterns take the same for each."""
    if not scene.generating or site.from_position is None or site.component not in PAIRWISE:
        return
    if kind == "project_out":
        reader.problems.add(path, f"{site.component.name} has more keys at every generated position; give positions")
    elif values.ndim and values.shape[-1] != 1:
        reader.problems.add(
            f"{path}.shape",
            f"it has {values.shape[-1]} keys, and there are more at every generated position; "
            "give a last axis of 1, which is for all of them, or positions",
        )


def _selected_shape(site: Site, tokens: int, reader: Reader, scene: Scene) -> tuple[int, ...]:
    """The shape of what one run selects."""
    if scene.role is Role.SWEEP:
        site = one_site(site, scene.together)
    # From a position on the values have to be the same at every position.
    positions = 1 if site.from_position is not None else len(site.positions_within(tokens))
    return reader.model.selected_shape(site.component, site.units, positions, tokens)


def _read_noise(message: pb.Noise, path: str, reader: Reader, site: Site | None) -> Noise:
    if site is not None and site.from_position is not None:
        reader.problems.add(path, "noise differs from position to position; give positions, not from_position")
    deviation = message.standard_deviation
    if not math.isfinite(deviation) or deviation < 0:
        reader.problems.add(
            f"{path}.standard_deviation", f"{deviation} is not a standard deviation; give a finite number of 0 or more"
        )
    return Noise(deviation, reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1)


def _read_knockout(message: pb.Knockout, path: str, reader: Reader, site: Site | None, scene: Scene) -> Knockout:
    keys = None
    if message.key_positions:
        keys = reader.positions(message.key_positions, scene.tokens, f"{path}.key_positions")
    if site is not None and site.component is not Component.ATTENTION_SCORES:
        reader.problems.add(path, f"it acts at ATTENTION_SCORES, the site is {site.component.name}")
    return Knockout(keys)


def _read_patch(message: pb.Patch, path: str, reader: Reader, site: Site | None, scene: Scene) -> Patch:
    if site is not None and site.from_position is not None:
        reader.problems.add(path, "a patch differs from position to position; give positions, not from_position")
    if not message.sources:
        reader.problems.add(
            f"{path}.sources", "no source was given; give at least one index into the request's sources"
        )
    sources: list[int] = []
    lengths: list[int] = []
    listed = reader.listed(len(message.sources), MOST_LISTED, f"{path}.sources", "sources")
    for i, value in enumerate(message.sources if listed else ()):
        index = reader.index(value, len(scene.sources), f"{path}.sources[{i}]", "source")
        if index is None:
            continue
        sources.append(index)
        source = scene.sources[index]
        if source is None:
            continue
        lengths.append(len(source.tokens))
        if site is not None and site.component in PAIRWISE and scene.tokens not in (None, lengths[-1]):
            reader.problems.add(
                f"{path}.sources[{i}]",
                f"source {index} has {lengths[-1]} tokens and the prompt {scene.tokens}; "
                f"{site.component.name} can be patched only between equally many",
            )
    positions = None
    if message.source_positions:
        positions = _read_source_positions(message, path, reader, site, scene, lengths)
    elif site is not None and scene.tokens is not None and site.from_position is None:
        _check_positions_exist(site, scene.tokens, lengths, path, reader)
    layer = None
    if message.HasField("source_layer"):
        layer = _read_source_layer(message.source_layer, f"{path}.source_layer", reader, site)
    return Patch(tuple(sources), positions, layer)


def _read_source_layer(value: int, path: str, reader: Reader, site: Site | None) -> int | None:
    if site is not None and site.component in LAYERLESS:
        reader.problems.add(path, f"{site.component.name} takes no layer; leave it unset")
        return None
    return reader.layer(value, path)


def _check_positions_exist(site: Site, tokens: int, lengths: Sequence[int], path: str, reader: Reader) -> None:
    last = max(site.positions_within(tokens), default=-1)
    if lengths and last >= min(lengths):
        reader.problems.add(
            f"{path}.sources",
            f"position {last} is edited and a source has {min(lengths)} tokens; "
            "name positions that every source has, or source_positions",
        )


def _read_source_positions(
    message: pb.Patch, path: str, reader: Reader, site: Site | None, scene: Scene, lengths: Sequence[int]
) -> tuple[int, ...]:
    field = f"{path}.source_positions"
    given = len(message.source_positions)
    if site is not None and scene.tokens is not None and site.from_position is None:
        wanted = len(site.positions_within(scene.tokens))
        if given != wanted:
            reader.problems.add(
                field, f"{given} were given and the site names {wanted} positions; give one for each, or none"
            )
            return ()
    if not lengths:
        return ()
    resolved: list[int] = []
    for i, value in enumerate(message.source_positions):
        if value < 0 and min(lengths) != max(lengths):
            reader.problems.add(
                f"{field}[{i}]", f"{value} counts from the end and the sources differ in length; count from the start"
            )
            continue
        position = reader.position(value, min(lengths), f"{field}[{i}]")
        if position is not None:
            resolved.append(position)
    return tuple(resolved)
