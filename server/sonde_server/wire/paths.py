"""Paths: which reads of the residual stream see an edit's change, and through what."""

from collections.abc import Callable, Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.edits import Path
from ..questions.graph import READ_BY_HEADS, READERS, WRITERS, precedes
from ..questions.paths import path_of
from ..questions.places import Component, Site
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, Reader
from .names import union
from .sites import Role, from_there, read_site

_RECEIVERS = ", ".join(component.name for component in (*READ_BY_HEADS, Component.MLP_OUT, Component.LOGITS))
_THROUGH = (Component.HEAD_OUT, Component.MLP_OUT)
# Whether a site, given by a message at a path, may be used.
Check = Callable[[pb.Site, Site, str, Reader], bool]


def read_path(message: pb.Path, path: str, reader: Reader, site: Site, prompt: Prompt | None) -> Path | None:
    """The path of an edit at a site; None where it is faulty."""
    before = len(reader.problems.violations)
    if site.component not in WRITERS:
        known = ", ".join(component.name for component in Component if component in WRITERS)
        reader.problems.add(
            path, f"expected an edit of what writes to the residual stream ({known}), got {site.component.name}"
        )
    if site.from_position is not None:
        reader.problems.add(path, "expected an edit at positions, because a path goes along the prompt alone")
    if not message.receivers:
        reader.problems.add(f"{path}.receivers", "expected at least one site, which reads the change, got none")
    receivers = _read_sites(message.receivers, f"{path}.receivers", reader, prompt, _receiver)
    through = _read_sites(message.through, f"{path}.through", reader, prompt, _between)
    if len(reader.problems.violations) > before or prompt is None:
        return None
    found = path_of(receivers, through, reader.model, len(prompt.tokens))
    _check_reached(found, path, reader, site, len(prompt.tokens))
    return found


def _read_sites(
    messages: Sequence[pb.Site], path: str, reader: Reader, prompt: Prompt | None, check: Check
) -> tuple[Site, ...]:
    if not reader.listed(len(messages), MOST_LISTED, path, "sites"):
        return ()
    found = []
    for i, message in enumerate(messages):
        field = f"{path}[{i}]"
        site = read_site(message, field, reader, prompt, Role.READ)
        if site is not None and check(message, site, field, reader):
            rows = site.rows
            found.append(Site(site.component, site.layers, site.units, site.positions if rows is None else union(rows)))
    return tuple(found)


def _receiver(message: pb.Site, site: Site, path: str, reader: Reader) -> bool:
    if site.component not in READERS:
        reader.problems.add(f"{path}.component", f"expected one of {_RECEIVERS}, got {site.component.name}")
        return False
    if message.units and site.component not in READ_BY_HEADS:
        reader.problems.add(
            f"{path}.units", f"expected none, because {site.component.name} reads as a whole, got {len(message.units)}"
        )
    return True


def _between(message: pb.Site, site: Site, path: str, reader: Reader) -> bool:
    if site.component not in _THROUGH:
        reader.problems.add(f"{path}.component", f"expected HEAD_OUT or MLP_OUT, got {site.component.name}")
        return False
    if message.units and site.component is Component.MLP_OUT:
        reader.problems.add(
            f"{path}.units", f"expected none, because MLP_OUT reads as a whole, got {len(message.units)}"
        )
    if message.positions or message.named_positions or from_there(message):
        reader.problems.add(
            f"{path}.positions", "expected none, because a change goes through a node wherever it comes to it"
        )
    return True


def _check_reached(path: Path, field: str, reader: Reader, site: Site, tokens: int) -> None:
    """Notes the layers of an edit that no receiver comes after, and positions that none reads."""
    receivers = [(one, layer) for one in path.receivers for layer in one.layers]
    idle = [
        layer
        for layer in site.layers
        if not any(precedes((site.component, layer), (one.component, above), reader.model) for one, above in receivers)
    ]
    if idle:
        shown = ", ".join(str(layer) for layer in idle[:8]) + (", ..." if idle[8:] else "")
        reader.problems.add(
            f"{field}.receivers",
            f"expected a receiver that reads after every layer of the edit; none reads after {site.component.name} of "
            f"layer {shown}",
        )
        return
    if any(one.component is Component.HEAD_OUT for one in path.through):
        return
    positions = set(site.positions_within(tokens))
    if not any(positions & set(one.positions_within(tokens)) for one in path.receivers):
        reader.problems.add(
            f"{field}.receivers",
            "expected a receiver at a position of the edit, because without heads in `through` a change stays at its "
            "position",
        )
