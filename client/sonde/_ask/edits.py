"""Changes to what is at a site: `sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)` is one edit of one place."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias, cast

import numpy.typing as npt

from sonde._ask.indices import Indices, index, indices
from sonde._ask.prompts import Prompt
from sonde._ask.sites import Site
from sonde.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Scale:
    """X becomes factor * X."""

    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """X becomes the value."""

    value: npt.ArrayLike


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """X becomes X + value."""

    value: npt.ArrayLike


@dataclass(frozen=True, slots=True, eq=False)
class Multiply:
    """X becomes X * value, entry by entry."""

    value: npt.ArrayLike


SourceLike: TypeAlias = SupportsIndex | str | Prompt
"""A prompt to patch from: itself, or its index in the call's `sources`."""


@dataclass(frozen=True, slots=True)
class Patch:
    """X becomes the mean of the same site in the unchanged runs of other prompts."""

    sources: tuple[int | str | Prompt, ...]
    source_positions: tuple[int, ...] = ()
    source_layer: int | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """X becomes X + standard_deviation * standard normal noise."""

    standard_deviation: float
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """X loses its part along the direction."""

    direction: npt.ArrayLike


@dataclass(frozen=True, slots=True)
class Knockout:
    """Queries stop attending to keys."""

    key_positions: tuple[int, ...] = ()


Operation: TypeAlias = Scale | Replace | Add | Multiply | Patch | Noise | ProjectOut | Knockout


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One change at one site. The functions below make them."""

    site: Site
    operation: Operation


def scale(site: Site, factor: float) -> Edit:
    """Multiply what is there by `factor`; 0 ablates, 1 changes nothing."""
    return Edit(site, Scale(factor))


def replace(site: Site, value: npt.ArrayLike) -> Edit:
    """Put `value` there; it broadcasts, from the right, against what one run selects."""
    return Edit(site, Replace(value))


def add(site: Site, value: npt.ArrayLike) -> Edit:
    """Add `value` (steering); it broadcasts, from the right, against what one run selects."""
    return Edit(site, Add(value))


def multiply(site: Site, value: npt.ArrayLike) -> Edit:
    """Multiply entry by entry; `value` broadcasts, from the right, against what one run selects."""
    return Edit(site, Multiply(value))


def patch(
    site: Site,
    sources: SourceLike | Iterable[SourceLike] = 0,
    *,
    source_positions: Indices = None,
    source_layer: SupportsIndex | None = None,
) -> Edit:
    """Put there what the same site has in the unchanged run of another prompt, or the mean over several.

    A source is a text or a `Prompt`, or an index into the `sources` of the call. One source is interchange (resample)
    ablation, several are mean ablation. `source_positions` are paired with the site's positions, or with those of a
    sweep; left out, they are the same absolute ones. `source_layer` takes the values of another layer than the site's
    (Patchscopes).
    """
    single = isinstance(sources, str | Prompt) or not isinstance(sources, Iterable) or getattr(sources, "ndim", 1) == 0
    named = [cast("SourceLike", sources)] if single else list(cast("Iterable[SourceLike]", sources))
    if not named:
        raise InvalidRequest.at("sources", "it is empty; name at least one prompt, or its index in the call's sources")
    resolved = tuple(entry if isinstance(entry, str | Prompt) else index(entry, "sources") for entry in named)
    layer = None if source_layer is None else index(source_layer, "source_layer")
    return Edit(site, Patch(resolved, indices(source_positions, "source_positions"), layer))


def noise(site: Site, standard_deviation: float, *, seed: int | None = None) -> Edit:
    """Add seeded normal noise, the same on every device; several layers get the same draw. Unset, the seed is 1."""
    return Edit(site, Noise(standard_deviation, seed))


def project_out(site: Site, direction: npt.ArrayLike) -> Edit:
    """Remove the part along `direction` (directional ablation); its length does not matter."""
    return Edit(site, ProjectOut(direction))


def knockout(site: Site, key_positions: Indices = None) -> Edit:
    """Stop attention (Geva et al. 2023): the site's positions, as queries, no longer see `key_positions`; None: any.

    The site is at `"attention_scores"`; its units are the heads.
    """
    return Edit(site, Knockout(indices(key_positions, "key_positions")))
