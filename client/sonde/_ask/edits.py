"""Edits: changes to the activations at a site, such as `sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex, TypeAlias, cast

import numpy.typing as npt

from sonde._ask.given import refusal, several
from sonde._ask.indices import index
from sonde._ask.named import Positions, PositionsLike, positions
from sonde._ask.prompts import Chat, Prompt
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


SourceLike: TypeAlias = SupportsIndex | str | Prompt | Chat
"""A prompt to patch from: the prompt itself, or its index in the call's `sources`."""


@dataclass(frozen=True, slots=True)
class Patch:
    """X becomes the mean of the same site over the unchanged runs of other prompts."""

    sources: tuple[int | str | Prompt | Chat, ...]
    source_positions: Positions = ()
    source_layer: int | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """X becomes X + standard_deviation * standard normal noise."""

    standard_deviation: float
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """X becomes X without its component along the direction."""

    direction: npt.ArrayLike


@dataclass(frozen=True, slots=True)
class Knockout:
    """Queries stop attending to keys."""

    key_positions: Positions = ()


Operation: TypeAlias = Scale | Replace | Add | Multiply | Patch | Noise | ProjectOut | Knockout


@dataclass(frozen=True, slots=True)
class Path:
    """Which reads of the residual stream see a change, and what hands it on to them."""

    receivers: tuple[Site, ...]
    through: tuple[Site, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One operation at one site. The functions below make edits."""

    site: Site
    operation: Operation
    path: Path | None = None


def scale(site: Site, factor: float) -> Edit:
    """Multiply the activations by `factor`: 0 ablates them, 1 changes nothing."""
    return Edit(site, Scale(factor))


def replace(site: Site, value: npt.ArrayLike) -> Edit:
    """Replace the activations with `value`, which broadcasts (from the right) to the shape that one run selects."""
    return Edit(site, Replace(value))


def add(site: Site, value: npt.ArrayLike) -> Edit:
    """Add `value` (steering), which broadcasts (from the right) to the shape that one run selects."""
    return Edit(site, Add(value))


def multiply(site: Site, value: npt.ArrayLike) -> Edit:
    """Multiply elementwise by `value`, which broadcasts (from the right) to the shape that one run selects."""
    return Edit(site, Multiply(value))


def patch(
    site: Site,
    sources: SourceLike | Iterable[SourceLike] = 0,
    *,
    source_positions: PositionsLike = None,
    source_layer: SupportsIndex | None = None,
) -> Edit:
    """Replace the activations with those of another prompt's unchanged run, or with their mean over several prompts.

    One source is interchange (resample) ablation; several are mean ablation.

    Args:
        site: the activations to replace.
        sources: texts, `Prompt`s, or indices into the `sources` of the call, or of the case.
        source_positions: where to read in the sources, one for each position of the site or of the sweep; None reads
            the same positions, by number or by name as the site has them.
        source_layer: the layer to read, if it is not the site's own (Patchscopes).

    Raises:
        InvalidRequest: if there is no source, or one is neither a prompt nor an index.
    """
    single = (
        isinstance(sources, str | Prompt | Chat)
        or not isinstance(sources, Iterable)
        or getattr(sources, "ndim", 1) == 0
    )
    named = [cast("SourceLike", sources)] if single else list(cast("Iterable[SourceLike]", sources))
    if not named:
        raise InvalidRequest.at("sources", "expected at least one prompt, or its index in the call's sources; got none")
    resolved = tuple(entry if isinstance(entry, str | Prompt | Chat) else index(entry, "sources") for entry in named)
    layer = None if source_layer is None else index(source_layer, "source_layer")
    return Edit(site, Patch(resolved, positions(source_positions, "source_positions"), layer))


def along(edit: Edit, receivers: Site | Iterable[Site], through: Site | Iterable[Site] = ()) -> Edit:
    """Let only `receivers` see the change that an edit makes (path patching: Wang et al. 2022, arXiv 2211.00593).

    Each receiver reads the residual stream with the change added to it; for everything else the edit was not made.

    Args:
        edit: an edit of what writes to the stream, such as `sonde.patch(sonde.head(layer=0, unit=1), other)`.
        receivers: what reads the change: `sonde.site("logits")`; the query, key or value of heads, as in
            `sonde.site("query", layers=3, units=5)`; the input of MLPs, named `sonde.site("mlp_out")`. Without layers
            or units, all that come after the edit.
        through: what hands the change on to the receivers: heads (`sonde.head()`) and MLPs (`sonde.site("mlp_out")`).
            Without it the path is direct. Wang et al. let direct paths go through MLPs.

    Raises:
        InvalidRequest: if the first argument is not an edit, or the others are not sites.
    """
    if not isinstance(edit, Edit):
        raise refusal("along", "an edit such as sonde.patch(site, other)", edit)
    return Edit(edit.site, edit.operation, Path(_sites(receivers, "receivers"), _sites(through, "through")))


def _sites(given: Site | Iterable[Site], name: str) -> tuple[Site, ...]:
    sites = (given,) if isinstance(given, Site) else several(given, name, "a site or a list of sites")
    for one in sites:
        if not isinstance(one, Site):
            raise refusal(name, "a site such as sonde.site('logits')", one)
    return sites


def noise(site: Site, standard_deviation: float, *, seed: int | None = None) -> Edit:
    """Add seeded normal noise, identical on every device. All layers get the same draw.

    Args:
        site: the activations to add noise to.
        standard_deviation: the standard deviation of the noise, in the units of the activations.
        seed: the seed of the noise; the default is 1.
    """
    return Edit(site, Noise(standard_deviation, seed))


def project_out(site: Site, direction: npt.ArrayLike) -> Edit:
    """Remove the component along `direction` (directional ablation). The length of `direction` does not matter."""
    return Edit(site, ProjectOut(direction))


def knockout(site: Site, key_positions: PositionsLike = None) -> Edit:
    """Block attention from the site's positions, as queries, to `key_positions` (Geva et al. 2023, arXiv 2304.14767).

    The site's component is `"attention_scores"` and its units are the heads. If `key_positions` is None, attention to
    all keys is blocked.
    """
    return Edit(site, Knockout(positions(key_positions, "key_positions")))
