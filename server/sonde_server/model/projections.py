"""Ways in which attention modules compute queries, keys and values of packed tokens.

A projection takes the attention module and the normed stream [N, D], and returns queries [N, H, d], keys and values
[N, K, d]. Families with rotary positions then rotate queries and keys. Projections call modules and never read their
weights, so that a module can fetch its weights from another device or from disk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Heads:
    """The numbers of query heads and of key and value heads, and the size of one head."""

    query: int
    key_value: int
    size: int

    def split(self, query: Tensor, key: Tensor, value: Tensor) -> "Projected":
        """Splits each of three tensors [N, heads x d] into heads."""
        return (
            query.unflatten(-1, (self.query, self.size)),
            key.unflatten(-1, (self.key_value, self.size)),
            value.unflatten(-1, (self.key_value, self.size)),
        )


Projected = tuple[Tensor, Tensor, Tensor]
Unit = tuple[int, int]
"""A head: whether it is one of queries (0), keys (1) or values (2), and its number among those."""
Order = Mapping[str, Sequence[Unit]]
"""By the name of a module, the heads that its output consists of, in order."""


@dataclass(frozen=True, slots=True)
class Project:
    """A projection. `order`: which heads each module computes; None where one head depends on the output of all."""

    apply: Callable[[nn.Module, Tensor, Heads], Projected]
    order: Callable[[Heads], Order] | None = None

    def __call__(self, attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        """Queries, keys and values of the normed stream [N, D]."""
        return self.apply(attention, normed, heads)


def _units(heads: Heads) -> tuple[list[Unit], list[Unit], list[Unit]]:
    counts = (heads.query, heads.key_value, heads.key_value)
    queries, keys, values = ([(kind, head) for head in range(count)] for kind, count in enumerate(counts))
    return queries, keys, values


def separate(query: str = "q_proj", key: str = "k_proj", value: str = "v_proj") -> Project:
    """One module each for queries, keys and values."""
    names = (query, key, value)

    def project(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        return heads.split(*(attention.get_submodule(name)(normed) for name in names))

    return Project(project, lambda heads: dict(zip(names, _units(heads), strict=True)))


def fused(name: str) -> Project:
    """One module whose output is all queries, then all keys, then all values."""

    def project(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        sizes = [heads.query * heads.size, heads.key_value * heads.size, heads.key_value * heads.size]
        return heads.split(*attention.get_submodule(name)(normed).split(sizes, dim=-1))

    return Project(project, lambda heads: {name: [unit for units in _units(heads) for unit in units]})


def grouped(name: str) -> Project:
    """One module whose output is, for each key head, the queries of its group, its key and its value."""

    def project(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        group = heads.query // heads.key_value
        every = attention.get_submodule(name)(normed).unflatten(-1, (heads.key_value, group + 2, heads.size))
        return every[:, :, :-2].flatten(1, 2), every[:, :, -2], every[:, :, -1]

    def order(heads: Heads) -> Order:
        group = heads.query // heads.key_value
        queries, keys, values = _units(heads)
        parts = (
            [*queries[head * group : (head + 1) * group], keys[head], values[head]] for head in range(heads.key_value)
        )
        return {name: [unit for part in parts for unit in part]}

    return Project(project, order)


def normed_heads(project: Project, query: str, key: str) -> Project:
    """Adds norms of queries and keys, applied to each head."""

    def norming(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        q, k, v = project(attention, normed, heads)
        return attention.get_submodule(query)(q), attention.get_submodule(key)(k), v

    return replace(project, apply=norming)


def normed_whole(project: Project, query: str, key: str) -> Project:
    """Adds norms of queries and keys, applied to all heads as one vector."""

    def norming(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        q, k, v = project(attention, normed, heads)
        return heads.split(
            attention.get_submodule(query)(q.flatten(1)), attention.get_submodule(key)(k.flatten(1)), v.flatten(1)
        )

    return Project(norming)


def clamped(project: Project, limit: float | None) -> Project:
    """Clamps queries, keys and values to [-limit, limit]; None: no limit."""
    if limit is None:
        return project

    def clamping(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        q, k, v = (one.clamp(-limit, limit) for one in project(attention, normed, heads))
        return q, k, v

    return replace(project, apply=clamping)


def scaled_queries(project: Project, scaling: float) -> Project:
    """Multiplies the queries by the scaling of the scores."""

    def scaled(attention: nn.Module, normed: Tensor, heads: Heads) -> Projected:
        q, k, v = project(attention, normed, heads)
        return q * scaling, k, v

    return replace(project, apply=scaled)
