"""Which runs an intervention makes of its edits, and how far they are continued.

    sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)              one edit of one place
    [edit, [edit, edit]]                                          two interventions; the second makes two edits together
    sonde.sweep(edit, layers=[3], positions=[-1])                 one run per place along the axes

Nothing here talks to a server. What only the model can know (whether layer 40 exists) is the server's to say; what is
wrong by itself is an `InvalidRequest` at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from sonde._ask.edits import Edit
from sonde._ask.given import refusal, several
from sonde._ask.indices import Indices, index, indices
from sonde._ask.names import AXES, AxisName, check_name
from sonde.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One run per layer, unit and position of the edit's site. `sweep()` makes one."""

    edit: Edit
    together: tuple[AxisName, ...] = ()
    layer_window: int | None = None
    always: tuple[Edit, ...] = ()


def sweep(
    edit: Edit,
    *,
    layers: Indices = None,
    units: Indices = None,
    positions: Indices = None,
    together: AxisName | Iterable[AxisName] = (),
    layer_window: int | None = None,
    always: Edit | Iterable[Edit] = (),
) -> Sweep:
    """Make `edit` in one run per layer, unit and position; what is left out here and in its site is swept in full.

    Args:
        edit: its site says where, with `layers`, `units` and `positions` as another way to say it.
        layers: the blocks to sweep.
        units: the heads or neurons to sweep. Components without either are edited over their full width.
        positions: the positions to sweep.
        together: axes that one run edits all at once, such as `"position"`.
        layer_window: how many layers each run edits, centred as in `CausalTracing.window`; unset, 1.
        always: edits made in every run, before the one that is swept.
    """
    if not isinstance(edit, Edit):
        raise refusal("sweep", "an edit such as sonde.scale(site, 0.0)", edit)
    place = edit.site
    for name, here in (("layers", layers), ("units", units), ("positions", positions)):
        if here is not None and getattr(place, name):
            raise InvalidRequest.at(name, "the edit's site has them too; say it in one of the two places")
    place = replace(
        place,
        layers=place.layers or indices(layers, "layers"),
        units=place.units or indices(units, "units"),
        positions=place.positions or indices(positions, "positions"),
    )
    axes = (together,) if isinstance(together, str) else several(together, "together", "names of axes")
    return Sweep(
        Edit(place, edit.operation),
        tuple(check_name(axis, AXES, "together") for axis in axes),
        None if layer_window is None else index(layer_window, "layer_window"),
        (always,) if isinstance(always, Edit) else several(always, "always", "an edit or a list of edits"),
    )


Plan: TypeAlias = Edit | Sequence[Edit | Sequence[Edit]] | Sweep
"""One edit; a list of interventions, each an edit or a list of edits made together; or a sweep."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Continue every run by up to `max_new_tokens` tokens."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most probable token each time."""
    seed: int | None = None
    """Of the sampling; unset, 1."""
    ignore_end_token: bool = False
