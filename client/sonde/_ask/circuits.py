"""Circuits: runs in which only some edges, or some nodes, carry what they carry in the unchanged run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, SupportsIndex, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from sonde._ask.edits import Patch, SourceLike
from sonde._ask.edits import patch as patch_edit
from sonde._ask.given import refusal, several
from sonde._ask.indices import index
from sonde._ask.names import COMPONENT_AXES, COMPONENTS, WITHOUT_LAYER
from sonde._ask.sites import Site, site

Ends = npt.NDArray[np.int64]
"""[n, 3]: component, layer and head."""
_EXPECTED: Final = "edges or nodes of a trace, pairs (sender, receiver), or sites without positions"


@runtime_checkable
class EdgeList(Protocol):
    """Edges, in an order: those of a trace, or what has the same two arrays."""

    @property
    def senders(self) -> Ends:
        """Their first ends: [edge, 3]."""
        ...

    @property
    def receivers(self) -> Ends:
        """Their second ends: [edge, 3]."""
        ...


@runtime_checkable
class NodeList(Protocol):
    """Nodes, in an order."""

    @property
    def senders(self) -> Ends:
        """The nodes: [node, 3]."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Circuits:
    """One run for each size, which keeps that many edges or nodes, from the first on. Made by `circuits()`."""

    senders: Ends
    receivers: Ends | None
    sizes: tuple[int, ...]
    patch: Patch | None


@runtime_checkable
class End(Protocol):
    """One end of an edge: a node of a trace, or what has the same three."""

    @property
    def component(self) -> str:
        """Its component."""
        ...

    @property
    def layer(self) -> int | None:
        """Its layer; None without layers."""
        ...

    @property
    def head(self) -> int | None:
        """Its head; None without heads."""
        ...


@runtime_checkable
class Pair(Protocol):
    """An edge of a trace, or what has the same two ends."""

    @property
    def sender(self) -> End:
        """What writes."""
        ...

    @property
    def receiver(self) -> End:
        """What reads."""
        ...


Listed: TypeAlias = EdgeList | NodeList | Iterable[Pair | tuple[End | Site, End | Site] | End | Site]
"""Edges or nodes of a trace; or a list of edges, of pairs (sender, receiver), or of nodes, given as nodes or sites."""


def circuits(
    edges: Listed,
    *,
    sizes: Iterable[SupportsIndex] | None = None,
    patch: SourceLike | Iterable[SourceLike] | None = None,
) -> Circuits:
    """Keep the first edges of a list, and let all others carry another prompt's values (Hanna et al. 2024).

    With no edge kept, a run is that of the other prompt; with all edges of the model kept, it is the unchanged one.
    `result.faithfulness()` says how much of the way between the two each run is.

    Args:
        edges: `edges` of a trace with `AttributionPatching` or `CircuitDiscovery`, in their order, from the most
            important one down; `edges.ordered(by="signed")` is another. Or `result.nodes()`: a node is kept with all
            its edges. Or a list of pairs (sender, receiver), such as `(sonde.head(layer=0, unit=1),
            sonde.site("logits"))`, or of such sites alone, which are nodes.
        sizes: how many are kept in each run; the default is 0, 1, 3, 10, 30 and so on, and all.
        patch: what the other edges carry: a prompt of the same length, several (their mean), or indices into the
            sources of the call or the case; None means zeros.

    Raises:
        InvalidRequest: if it is not a list of edges or nodes, or a size is not a number.
    """
    senders, receivers = ends_of(edges)
    chosen = default_sizes(len(senders)) if sizes is None else several(sizes, "sizes", "numbers")
    given = None if patch is None else patch_edit(site("head_out"), patch).operation
    return Circuits(senders, receivers, tuple(index(size, "sizes") for size in chosen), cast("Patch | None", given))


def ends_of(edges: Listed) -> tuple[Ends, Ends | None]:
    """The senders and the receivers of edges; no receivers where nodes are listed.

    Raises:
        InvalidRequest: if they are neither edges nor nodes, or both, or a site is not one component of one layer.
    """
    if isinstance(edges, NodeList):
        receivers = _rows(edges.receivers) if isinstance(edges, EdgeList) else None
        return _rows(edges.senders), receivers
    listed = [_pair(one) for one in several(edges, "edges", _EXPECTED)]
    pairs = [pair for pair in listed if len(pair) == 2]
    if pairs and len(pairs) < len(listed):
        raise refusal("edges", "edges alone or nodes alone", edges)
    rows = [[_end(end, f"edges[{number}]") for end in pair] for number, pair in enumerate(listed)]
    return _rows([row[0] for row in rows]), _rows([row[1] for row in rows]) if pairs or not rows else None


def _rows(given: npt.ArrayLike) -> Ends:
    return np.asarray(given, np.int64).reshape(-1, 3)


def _pair(given: object) -> tuple[object, ...]:
    """The two ends of an edge, or a node alone."""
    if isinstance(given, Pair):
        return given.sender, given.receiver
    if isinstance(given, tuple | list) and len(given) == 2:
        return tuple(given)
    return (given,)


def _end(given: object, name: str) -> tuple[int, int, int]:
    """Component, layer and head of a node or a site, with 0 for what its component does not have."""
    if isinstance(given, Site) and not (given.positions or given.from_position is not None):
        component: str = given.component
        layers, heads = given.layers, given.units
    elif isinstance(given, End) and not isinstance(given, Site):
        component = given.component
        layers, heads = (() if one is None else (one,) for one in (given.layer, given.head))
    else:
        raise refusal(name, _EXPECTED, given)
    layered = component not in WITHOUT_LAYER
    headed = COMPONENT_AXES.get(component, ())[1:2] == ("head",)  # type: ignore[call-overload]
    if component not in COMPONENTS or len(layers) != layered or len(heads) != headed:
        raise refusal(name, "one layer where the component has layers, one head where it has heads", given)
    return COMPONENTS[component], *((one[0] if one else 0) for one in (layers, heads))  # type: ignore[index, return-value]


def default_sizes(count: int) -> Sequence[int]:
    """0, 1, 3, 10, 30 and so on, and all of them."""
    steps = [factor * 10**power for power in range(len(str(count))) for factor in (1, 3)]
    return [0, *(size for size in steps if size < count), count] if count else [0]
