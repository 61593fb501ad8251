"""Random edits and sweeps that have a meaning, for hypothesis."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from tests.support import oracle
from tests.support.oracle import UNIT_FIRST, UNLAYERED, Edit, Oracle, Site, Sweep

FACTORS = (0.0, 0.5, 1.0, -1.0, 1.75)
"""Exact in float32."""


@dataclass(frozen=True)
class Bounds:
    """What edits are drawn for: a model, the prompt's length, and sources at least as long."""

    oracle: Oracle
    length: int
    same_length: Sequence[int]
    """Indices of the sources that are as long as the prompt."""
    longer: Sequence[int]


def subsets(size: int, most: int = 3, least: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of range(size), in any order, each once."""
    several = st.lists(st.integers(0, size - 1), min_size=least, max_size=min(most, size), unique=True)
    return several.map(tuple)


@st.composite
def broadcastable(draw: st.DrawFn, shape: tuple[int, ...], fixed: int | None = None) -> oracle.Array:
    """An array that broadcasts, from the right, against `shape`; `fixed` is an axis along which it is the same."""
    rank = draw(st.integers(0, len(shape)))
    kept = [1 if axis == fixed or draw(st.booleans()) else shape[axis] for axis in range(len(shape) - rank, len(shape))]
    draws = np.random.RandomState(draw(st.integers(0, 2**16)))
    return draws.randn(*kept).astype(np.float32) if kept else np.array(draws.randn(), dtype=np.float32)


def kinds(component: str, from_position: bool) -> list[str]:
    """The operations that have a meaning at a component."""
    if from_position and component in UNIT_FIRST:
        return ["scale"]
    found = ["scale", "set", "add", "multiply"]
    if component not in UNIT_FIRST:
        found.append("project_out")
    if not from_position:
        found += ["patch", "noise"]
        if component == "ATTENTION_SCORES":
            found.append("knockout")
    return found


@st.composite
def operations(draw: st.DrawFn, bounds: Bounds, site: Site, shape: tuple[int, ...], pairs: int) -> oracle.Operation:  # noqa: PLR0911 - one per operation
    """An operation at a site whose selection has this shape; `pairs` positions can be paired with a source's."""
    open_ended = site.from_position is not None
    kind = draw(st.sampled_from(kinds(site.component, open_ended)))
    along = (1 if site.component in UNIT_FIRST else 0) if open_ended else None
    match kind:
        case "scale":
            return oracle.Scale(draw(st.sampled_from(FACTORS)))
        case "set":
            return oracle.Set(draw(broadcastable(shape, along)))
        case "add":
            return oracle.Add(draw(broadcastable(shape, along)))
        case "multiply":
            return oracle.Multiply(draw(broadcastable(shape, along)))
        case "project_out":
            direction = np.random.RandomState(draw(st.integers(0, 2**16))).randn(shape[-1])
            return oracle.ProjectOut(direction.astype(np.float32))
        case "noise":
            return oracle.Noise(0.5, draw(st.none() | st.integers(0, 2**32 - 1)))
        case "knockout":
            return oracle.Knockout(draw(subsets(bounds.length)))
    unset = st.none()
    layer = draw(unset if site.component in UNLAYERED else unset | st.integers(0, bounds.oracle.layers - 1))
    if site.component in UNIT_FIRST:
        same = draw(st.lists(st.sampled_from(bounds.same_length), min_size=1, max_size=2).map(tuple))
        return oracle.Patch(same, source_layer=layer)
    sources = draw(st.lists(st.sampled_from([*bounds.same_length, *bounds.longer]), min_size=1, max_size=3).map(tuple))
    anywhere = st.lists(st.integers(-bounds.length, bounds.length - 1), min_size=pairs, max_size=pairs).map(tuple)
    # Nothing says which tokens of a longer source belong to all those of the prompt.
    unpaired = bool(site.positions) or not set(sources) & set(bounds.longer)
    return oracle.Patch(sources, draw(st.just(()) | anywhere) if unpaired else draw(anywhere), layer)


@st.composite
def sites(draw: st.DrawFn, bounds: Bounds, from_position: bool = True, least_layers: int = 1) -> Site:
    """A site of any component."""
    component = draw(st.sampled_from(bounds.oracle.components))
    layers = () if component in UNLAYERED else draw(subsets(bounds.oracle.layers, least=least_layers))
    units = draw(subsets(bounds.oracle.units(component)))
    positions = draw(st.lists(st.integers(0, bounds.length - 1), max_size=3, unique=True))
    signed = tuple(position - bounds.length if draw(st.booleans()) else position for position in positions)
    site = Site(component, layers, units, signed)
    if from_position and draw(st.integers(0, 3)) == 0:
        return replace(site, positions=(), from_position=draw(st.integers(0, bounds.length + 2)))
    return site


@st.composite
def edits(draw: st.DrawFn, bounds: Bounds, from_position: bool = True) -> Edit:
    """Any edit that has a meaning."""
    site = draw(sites(bounds, from_position))
    where = bounds.oracle.selection(site, bounds.length)
    shape = (*where[0].shape, *bounds.oracle.shape(site.component, bounds.length)[2:])
    count = len(bounds.oracle.positions(site, bounds.length))
    return Edit(site, draw(operations(bounds, site, shape, count)))


def in_order(run: list[Edit]) -> list[Edit]:
    """Knockouts last: what a later edit does to a score that was knocked out has no agreed meaning."""
    return sorted(run, key=lambda edit: isinstance(edit.operation, oracle.Knockout))


@st.composite
def plans(draw: st.DrawFn, bounds: Bounds) -> list[list[Edit]]:
    """A few runs of a few edits."""
    return draw(st.lists(st.lists(edits(bounds), min_size=1, max_size=3).map(in_order), min_size=1, max_size=3))


@st.composite
def sweeps(draw: st.DrawFn, bounds: Bounds) -> Sweep:
    """A sweep of any component, of some dozens of runs at most."""
    site = draw(sites(bounds, from_position=False, least_layers=0))
    if site.component in ("NEURON", "LOGITS") and not site.units:
        site = replace(site, units=draw(subsets(bounds.oracle.units(site.component), least=1)))
    together = frozenset(draw(st.sets(st.sampled_from(["LAYER", "UNIT", "POSITION"]))))
    blank = Sweep(Edit(site, oracle.Scale(0.0)), together)
    layers, units, positions = bounds.oracle.axes(blank, bounds.length)
    # The most numerous axis goes together where there would be too many runs.
    for axis, values in sorted(
        {"LAYER": layers, "UNIT": units, "POSITION": positions}.items(), key=lambda a: -len(a[1])
    ):
        if len(bounds.oracle.expand(blank, bounds.length)) > 40 and len(values) > 1:
            together |= {axis}
            blank = replace(blank, together=together)
    one = bounds.oracle.expand(blank, bounds.length)[0][-1].site
    where = bounds.oracle.selection(one, bounds.length)
    shape = (*where[0].shape, *bounds.oracle.shape(site.component, bounds.length)[2:])
    operation = draw(operations(bounds, site, shape, len(positions)))
    # What a window is to layers that go together, the contract does not say.
    window = None if site.component in UNLAYERED or "LAYER" in together else draw(st.none() | st.integers(1, 4))
    always: tuple[Edit, ...] = ()
    if not isinstance(operation, oracle.Knockout):
        always = tuple(in_order(draw(st.lists(edits(bounds, from_position=False), max_size=1))))
        always = tuple(edit for edit in always if not isinstance(edit.operation, oracle.Knockout))
    return Sweep(Edit(site, operation), together, window, always)
