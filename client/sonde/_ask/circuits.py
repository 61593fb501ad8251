"""Circuits: runs in which only some edges, or some nodes, carry what they carry in the unchanged run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from sonde._ask.edits import Patch, SourceLike
from sonde._ask.edits import patch as patch_edit
from sonde._ask.given import refusal, several
from sonde._ask.indices import index
from sonde._ask.sites import site

Ends = npt.NDArray[np.int64]
"""[n, 3]: component, layer and head."""


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


def circuits(
    edges: EdgeList | NodeList,
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
            its edges.
        sizes: how many are kept in each run; the default is 0, 1, 3, 10, 30 and so on, and all.
        patch: what the other edges carry: a prompt of the same length, several (their mean), or indices into the
            sources of the call or the case; None means zeros.

    Raises:
        InvalidRequest: if it is not a list of edges or nodes, or a size is not a number.
    """
    if not isinstance(edges, NodeList):
        raise refusal("edges", "edges or nodes of a trace", edges)
    senders = np.asarray(edges.senders, np.int64).reshape(-1, 3)
    receivers = np.asarray(edges.receivers, np.int64).reshape(-1, 3) if isinstance(edges, EdgeList) else None
    chosen = default_sizes(len(senders)) if sizes is None else several(sizes, "sizes", "numbers")
    given = None if patch is None else patch_edit(site("head_out"), patch).operation
    return Circuits(senders, receivers, tuple(index(size, "sizes") for size in chosen), cast("Patch | None", given))


def default_sizes(count: int) -> Sequence[int]:
    """0, 1, 3, 10, 30 and so on, and all of them."""
    steps = [factor * 10**power for power in range(len(str(count))) for factor in (1, 3)]
    return [0, *(size for size in steps if size < count), count] if count else [0]
