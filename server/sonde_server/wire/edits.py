"""Edits: what is done at a site, checked against the shape of what one run selects there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..questions.edits import Add, Edit, Knockout, Multiply, Noise, Operation, Patch, ProjectOut, Scale, Set, Values
from ..questions.places import LAYERLESS, PAIRWISE, Component, Site
from ..questions.plans import Axis, run_sites
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, Reader
from .names import read_rows, union
from .patches import read_source_positions
from .paths import read_path
from .sites import Role, read_site
from .tensors import check_broadcasts, decode_tensor

_OPERATIONS = ", ".join(field.name for field in pb.Edit.DESCRIPTOR.oneofs_by_name["operation"].fields)


@dataclass(frozen=True, slots=True)
class Scene:
    """What an edit is read against: the prompt (None if it is faulty), the sources, a sweep's axes.

    `generating`: runs are continued, so an edit with from_position is made at generated positions too.
    """

    prompt: Prompt | None
    sources: Sequence[Prompt | None]
    role: Role = Role.EDIT
    together: frozenset[Axis] = frozenset()
    generating: bool = False

    @property
    def tokens(self) -> int | None:
        """The length of the prompt."""
        return None if self.prompt is None else len(self.prompt.tokens)

    @property
    def swept(self) -> bool:
        """Whether runs differ in their positions."""
        return self.role is Role.SWEEP and Axis.POSITION not in self.together


def read_edit(message: pb.Edit, path: str, reader: Reader, scene: Scene) -> Edit | None:
    """One edit; None where its site or its operation is faulty."""
    site = None
    if message.HasField("site"):
        site = read_site(message.site, f"{path}.site", reader, scene.prompt, scene.role)
    else:
        reader.problems.add(f"{path}.site", "expected a site, got none")
    kind = message.WhichOneof("operation")
    if kind is None:
        reader.problems.add(path, f"expected one of {_OPERATIONS}, got none")
        return None
    operation = _read_operation(message, kind, path, reader, site, scene)
    if site is None or operation is None:
        return None
    if not message.HasField("path"):
        return Edit(_joined(site, scene), operation)
    if scene.generating:
        reader.problems.add(f"{path}.path", "expected no path, because the runs are continued (readout.generation)")
    way = read_path(message.path, f"{path}.path", reader, site, scene.prompt)
    return None if way is None else Edit(_joined(site, scene), operation, way)


def _joined(site: Site, scene: Scene) -> Site:
    """The site as it is edited: what several names have in common is one place of a run, but not of a sweep's axis."""
    return site if site.rows is None or scene.swept else replace(site, positions=union(site.rows), rows=None)


def _read_operation(
    message: pb.Edit, kind: str, path: str, reader: Reader, site: Site | None, scene: Scene
) -> Operation | None:
    field = f"{path}.{kind}"
    match kind:
        case "scale":
            if not math.isfinite(message.scale):
                reader.problems.add(field, f"expected a finite number, got {message.scale}")
            return Scale(message.scale)
        case "patch":
            return _read_patch(message.patch, message.site, field, reader, site, scene)
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
        for shape in _selected_shapes(site, scene.tokens, reader, scene):
            if not check_broadcasts(values, shape, path, reader):
                break
        _check_generated(values, kind, path, reader, site, scene)
    if kind == "project_out":
        nonzero = values.any(axis=-1) if values.ndim else values != 0
        if not np.all(nonzero):
            reader.problems.add(
                f"{path}.data", "expected directions other than zero along the last axis, got a zero direction"
            )
        return ProjectOut(values)
    if kind == "set":
        return Set(values)
    return Add(values) if kind == "add" else Multiply(values)


def _check_generated(
    values: Values,
    kind: str,
    path: str,
    reader: Reader,
    site: Site,
    scene: Scene,
) -> None:
    """After the prompt every position has more keys, so scores and patterns take one value for all of them."""
    if not scene.generating or site.from_position is None or site.component not in PAIRWISE:
        return
    if kind == "project_out":
        reader.problems.add(
            path,
            f"expected positions instead of from_position, because {site.component.name} has one more key at every "
            "generated position",
        )
    elif values.ndim and values.shape[-1] != 1:
        reader.problems.add(
            f"{path}.shape",
            f"expected a last axis of 1, got {values.shape[-1]}: there is one more key at every generated position. "
            "Use one value for all keys, or positions instead of from_position",
        )


def _selected_shapes(site: Site, tokens: int, reader: Reader, scene: Scene) -> Iterator[tuple[int, ...]]:
    """The shapes of what one run selects; several where the entries of a sweep have unequal numbers of positions."""
    site = _joined(site, scene)
    for one in run_sites(site, scene.together) if scene.role is Role.SWEEP else (site,):
        # From a position on the values have to be the same at every position.
        positions = 1 if one.from_position is not None else len(one.positions_within(tokens))
        yield reader.model.selected_shape(one.component, one.units, positions, tokens)


def _read_noise(message: pb.Noise, path: str, reader: Reader, site: Site | None) -> Noise:
    if site is not None and site.from_position is not None:
        reader.problems.add(
            path, "expected positions instead of from_position, because noise differs between positions"
        )
    deviation = message.standard_deviation
    if not math.isfinite(deviation) or deviation < 0:
        reader.problems.add(f"{path}.standard_deviation", f"expected a finite number of 0 or more, got {deviation}")
    return Noise(deviation, reader.seed(message.seed, f"{path}.seed") if message.HasField("seed") else 1)


def _read_knockout(message: pb.Knockout, path: str, reader: Reader, site: Site | None, scene: Scene) -> Knockout:
    keys = None
    if message.key_positions and message.named_key_positions:
        reader.problems.add(
            f"{path}.named_key_positions", "expected one of key_positions and named_key_positions, got both"
        )
    if message.named_key_positions:
        field = f"{path}.named_key_positions"
        keys = union(read_rows(message.named_key_positions, scene.prompt, field, reader, filled=True) or ())
    elif message.key_positions:
        keys = reader.positions(message.key_positions, scene.tokens, f"{path}.key_positions")
    if site is not None and site.component is not Component.ATTENTION_SCORES:
        reader.problems.add(path, f"expected a site at ATTENTION_SCORES, got {site.component.name}")
    return Knockout(keys)


def _read_patch(message: pb.Patch, place: pb.Site, path: str, reader: Reader, site: Site | None, scene: Scene) -> Patch:
    """A patch at a site, which is also given as the request has it, before its positions are resolved in the prompt."""
    if site is not None and site.from_position is not None:
        reader.problems.add(
            path, "expected positions instead of from_position, because a patch differs between positions"
        )
    if not message.sources:
        reader.problems.add(f"{path}.sources", "expected at least one index into the sources of the request, got none")
    sources: list[int] = []
    known: list[tuple[int, Prompt]] = []
    listed = reader.listed(len(message.sources), MOST_LISTED, f"{path}.sources", "sources")
    for i, value in enumerate(message.sources if listed else ()):
        index = reader.index(value, len(scene.sources), f"{path}.sources[{i}]", "source")
        if index is None:
            continue
        sources.append(index)
        source = scene.sources[index]
        if source is None:
            continue
        known.append((index, source))
        if site is not None and site.component in PAIRWISE and scene.tokens not in (None, len(source.tokens)):
            reader.problems.add(
                f"{path}.sources[{i}]",
                f"expected a source as long as the prompt, because {site.component.name} has an entry for each pair of "
                f"tokens: the prompt has {scene.tokens} tokens and source {index} has "
                f"{len(source.tokens)}",
            )
    positions = None
    if site is not None and scene.tokens is not None and site.from_position is None and known:
        positions = read_source_positions(message, place, path, reader, site, scene.tokens, known)
        if positions is not None and site.rows is not None and not scene.swept:
            # The first of several sources of one position counts.
            flat = site.positions or ()
            first = [flat.index(position) for position in union(site.rows)]
            positions = tuple(tuple(row[i] for i in first) for row in positions)
    layer = None
    if message.HasField("source_layer"):
        layer = _read_source_layer(message.source_layer, f"{path}.source_layer", reader, site)
    return Patch(tuple(sources), positions, layer)


def _read_source_layer(value: int, path: str, reader: Reader, site: Site | None) -> int | None:
    if site is not None and site.component in LAYERLESS:
        reader.problems.add(path, f"expected no source_layer, because {site.component.name} has no layers, got {value}")
        return None
    return reader.layer(value, path)
