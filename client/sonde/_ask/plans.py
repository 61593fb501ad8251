"""Plans: the runs that a call makes of its edits, and how many tokens each run generates.

    sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)              one run with one edit
    [edit, [edit, edit]]                                          two runs; the second makes two edits together
    {"no head 9.1": edit, "no heads": [edit, edit]}               two runs with names
    sonde.sweep(edit, layers=[3], positions=[-1])                 one run for each place along the axes

Nothing here contacts a server. Mistakes that do not depend on the model raise `InvalidRequest` at once; the server
checks the rest, such as whether layer 40 exists.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, cast

from sonde._ask.circuits import Circuits
from sonde._ask.edits import Edit
from sonde._ask.given import refusal, several
from sonde._ask.hypotheses import CausalScrubbing
from sonde._ask.indices import Indices, index, indices
from sonde._ask.named import PositionsLike
from sonde._ask.named import positions as positions_of
from sonde._ask.names import AXES, AxisName, check_name
from sonde._ask.sites import Site
from sonde.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One run for each layer, unit and position of the edit's site. Made by `sweep()`."""

    edit: Edit
    together: tuple[AxisName, ...] = ()
    layer_window: int | None = None
    always: tuple[Edit, ...] = ()


def sweep(
    edit: Edit,
    *,
    layers: Indices = None,
    units: Indices = None,
    positions: PositionsLike = None,
    together: AxisName | Iterable[AxisName] = (),
    layer_window: int | None = None,
    always: Edit | Iterable[Edit] = (),
) -> Sweep:
    """Apply `edit` at each layer, unit and position, one run per place.

    An axis that is named neither here nor in the site is swept in full.

    Args:
        edit: the edit. Its site can name the layers, units and positions instead of the arguments below.
        layers: the blocks to sweep.
        units: the heads or neurons to sweep. Components without either are edited over their full width.
        positions: the positions to sweep. Each name counts as one: a run edits its positions together.
        together: axes that each run edits as a whole, such as `"position"`.
        layer_window: how many layers each run edits, centred as in `CausalTracing.window`; the default is 1.
        always: edits that every run makes first.

    Raises:
        InvalidRequest: if the site and the arguments name the same axis, or a name is not known.
    """
    if not isinstance(edit, Edit):
        raise refusal("sweep", "an edit such as sonde.scale(site, 0.0)", edit)
    place = edit.site
    for name, here in (("layers", layers), ("units", units), ("positions", positions)):
        if here is not None and getattr(place, name):
            raise InvalidRequest.at(name, "the edit's site names them too; name them in one of the two places")
    place = replace(
        place,
        layers=place.layers or indices(layers, "layers"),
        units=place.units or indices(units, "units"),
        positions=place.positions or positions_of(positions, "positions"),
    )
    axes = (together,) if isinstance(together, str) else several(together, "together", "names of axes")
    return Sweep(
        Edit(place, edit.operation, edit.path),
        tuple(check_name(axis, AXES, "together") for axis in axes),
        None if layer_window is None else index(layer_window, "layer_window"),
        (always,) if isinstance(always, Edit) else several(always, "always", "an edit or a list of edits"),
    )


Run: TypeAlias = Edit | Sequence[Edit]
"""One run: an edit, or a list of edits made together."""
Plan: TypeAlias = Edit | Sequence[Run] | Mapping[str, Run] | Sweep | Circuits | CausalScrubbing
"""One edit; a list with one entry per run, or a mapping from the name of each run to its entry; a sweep; circuits; or a
hypothesis to scrub."""


def runs_of(plan: Plan) -> tuple[Run, ...]:
    """The runs of a plan that is no sweep.

    Raises:
        InvalidRequest: for anything else.
    """
    if isinstance(plan, Mapping):
        return tuple(plan.values())
    return (plan,) if isinstance(plan, Edit) else several(cast("Sequence[Run]", plan), "interventions", _PLAN)


def labels_of(plan: Plan) -> tuple[str, ...]:
    """The names that a plan gives to its runs; empty if it gives none.

    Raises:
        InvalidRequest: if one is not text.
    """
    if not isinstance(plan, Mapping):
        return ()
    given: Iterable[object] = plan
    strange = [name for name in given if not isinstance(name, str)]
    if strange:
        raise refusal("interventions", "names of runs as text", strange[0])
    return tuple(plan)


_PLAN: Final = "an edit, a list of edits, a mapping from names to edits, a sweep, circuits, or a hypothesis"


@dataclass(frozen=True, slots=True)
class Generation:
    """Generate tokens in every run.

    Args:
        max_new_tokens: the largest number of tokens to generate.
        temperature: the temperature of the sampling; the default, 0, always takes the most probable token.
        seed: the seed of the sampling; the default is 1.
        ignore_end_token: continue after an end token; the default is False.
        top_p: sample from the fewest most probable tokens that together have this probability; the default, 1, is all.
        stop: a text, or several, that end a continuation where it contains one of them.
        samples: how many continuations each run has, with the seeds `seed`, `seed + 1` and so on; the default is 1.
        log_probabilities: return the log-probability of each token that was taken; the default is False.
        activations: sites to read at the generated tokens, except the last token; the default is none. They name no
            positions.
        changed_only: continue only the changed runs, and not the unchanged one; the default is False.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_end_token: bool = False
    top_p: float | None = None
    stop: str | Iterable[str] = ()
    samples: int = 1
    log_probabilities: bool = False
    activations: Site | Iterable[Site] = ()
    changed_only: bool = False

    @property
    def sites(self) -> tuple[Site, ...]:
        """`activations` as a tuple.

        Raises:
            InvalidRequest: if it is not a site or a list of sites.
        """
        given = self.activations
        return (given,) if isinstance(given, Site) else several(given, "activations", "a list of sites")
