"""The methods of a trace: how it looks at the run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, SupportsIndex, TypeVar

import numpy.typing as npt

from sonde._ask.indices import Indices, index, indices
from sonde._ask.names import METRICS, ComponentName, MetricName, check_name
from sonde._ask.prompts import PromptLike
from sonde._ask.sites import Site, component_names
from sonde.errors import InvalidRequest

if TYPE_CHECKING:
    from sonde._methods.traces import (  # ruff does not look into Method[...]
        ActivationsResult,  # noqa: F401
        AttributionPatchingResult,  # noqa: F401
        CausalTracingResult,  # noqa: F401
        TokenProbabilityResult,  # noqa: F401
        TraceResult,
    )

ResultT_co = TypeVar("ResultT_co", bound="TraceResult", covariant=True)


class Method(Generic[ResultT_co]):
    """How a trace looks at the run. The parameter is the class of its result."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TokenProbability(Method["TokenProbabilityResult"]):
    """The target read from the residual stream at each depth (logit lens), and gradient norms if asked for."""

    gradient_norms: bool = False
    """Also the L2 norm of the gradient of the target by depth and position."""
    metric: MetricName | None = None
    """What is differentiated; unset, the probability."""

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")


@dataclass(frozen=True, slots=True, eq=False)
class CausalTracing(Method["CausalTracingResult"]):
    """Corrupt the subject, restore one clean state at a time (Meng et al. 2022, arXiv 2202.05262).

    The corruption is Gaussian noise on the subject's token embeddings, or `noise` as given, or another prompt.
    """

    subject: str | Sequence[SupportsIndex] | None = None
    """What is corrupted: a part of the prompt's text, or positions. A counterfactual has none."""
    samples: int | None = None
    """How many draws of the noise; unset, 10."""
    seed: int | None = None
    """Of the noise; unset, 1, which is ROME's own."""
    deviations: float | None = None
    """The noise in standard deviations of all entries of the embedding; unset, 3."""
    standard_deviation: float | None = None
    """The noise as it is, instead of `deviations`."""
    noise: npt.ArrayLike | None = None
    """[samples, corrupted positions, D]: noise given in full, to replay another's run."""
    counterfactual: PromptLike | None = None
    """A prompt of as many tokens; corrupted is where the two differ."""
    replace: bool = False
    """Noise takes the embedding's place instead of being added."""
    components: ComponentName | Iterable[ComponentName] | None = None
    """What is restored; unset: residual_post, mlp_out, attention_out."""
    window: int | None = None
    """Layers restored together for mlp_out and attention_out; unset, 10: from l - 5 to l + 4."""
    layers: Indices = None
    """Unset: all."""
    positions: Indices = None
    """Unset: all."""
    per_sample: bool = False
    """Also every sample's probability."""

    def __post_init__(self) -> None:
        gaussian = (self.samples, self.seed, self.deviations, self.standard_deviation)
        if self.deviations is not None and self.standard_deviation is not None:
            raise InvalidRequest.at("standard_deviation", "deviations were given too; one of the two would do")
        if (self.noise is not None) + (self.counterfactual is not None) + any(g is not None for g in gaussian) > 1:
            raise InvalidRequest.at(
                "noise",
                "more than one corruption was given; Gaussian noise (samples, seed, deviations, standard_deviation), "
                "noise and counterfactual exclude one another",
            )
        _freeze(self, "components", component_names(self.components))
        _freeze(self, "layers", indices(self.layers, "layers"))
        _freeze(self, "positions", indices(self.positions, "positions"))
        if self.subject is not None and not isinstance(self.subject, str):
            _freeze(self, "subject", indices(self.subject, "subject"))


@dataclass(frozen=True, slots=True, eq=False)
class AttributionPatching(Method["AttributionPatchingResult"]):
    """Estimate, to first order, what patching each place from `source` into the prompt would do to the metric.

    (source - prompt) . gradient in the prompt's run (Nanda 2023; Kramar et al. 2024, arXiv 2403.00745).
    """

    source: PromptLike
    """A prompt of as many tokens."""
    components: ComponentName | Iterable[ComponentName] | None = None
    integration_steps: int | None = None
    """Unset or 1: the plain gradient; more: averaged along the embeddings' straight line."""
    metric: MetricName | None = None
    """Unset: the logit."""
    verify_top: int = 0
    """Really patch this many of the largest estimates and report both numbers."""
    recompute_softmax: bool = False
    """At query and key: what patching really does to the pattern, times the pattern's gradient (AtP*)."""
    drop_layers: bool = False
    """Sizes averaged over gradients, in each of which one layer's writes have none (GradDrop of AtP*)."""
    edges: int | Literal["all"] | None = None
    """Also what one component writes and another reads: the so many largest of these, or all (EAP, EAP-IG)."""

    def __post_init__(self) -> None:
        _freeze(self, "components", component_names(self.components))
        if self.edges is not None and self.edges != "all" and index(self.edges, "edges") < 1:
            raise InvalidRequest.at("edges", f"{self.edges} was given; a number from 1 on, or 'all', would do")
        if self.metric is not None:
            check_name(self.metric, METRICS, "metric")


@dataclass(frozen=True, slots=True, init=False)
class Activations(Method["ActivationsResult"]):
    """Read activations: `Activations(sonde.residual(layer=3), sonde.head())`."""

    sites: tuple[Site, ...] = field()

    def __init__(self, *sites: Site) -> None:
        if not sites:
            raise InvalidRequest.at("activations", "no site was given; name at least one")
        _freeze(self, "sites", sites)


def _freeze(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)
