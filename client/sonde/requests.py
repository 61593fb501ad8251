"""What a person writes: places, edits, sweeps, and the methods of a trace.

    sonde.scale(sonde.neuron(layer=3, unit=17), 0.0)              one edit of one place
    [edit, [edit, edit]]                                          two interventions; the second makes two edits together
    sonde.sweep(edit, layers=[3], positions=[-1])                 one run per place along the axes

Nothing here talks to a server. What only the model can know (whether layer 40 exists) is the server's to say; what is
wrong by itself is an `InvalidRequest` at once.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _copy
from typing import TYPE_CHECKING, Final, Generic, Literal, SupportsIndex, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from sonde.errors import InvalidRequest
from sonde.names import AXES, COMPONENTS, METRICS, STACKS, AxisName, ComponentName, MetricName, StackName, check_name

if TYPE_CHECKING:
    from sonde.traces import (  # ruff does not look into Method[...]
        ActivationsResult,  # noqa: F401
        AttributionPatchingResult,  # noqa: F401
        CausalTracingResult,  # noqa: F401
        TokenProbabilityResult,  # noqa: F401
        TraceResult,
    )

Indices: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None
"""One index, or several; None leaves the choice to the contract, which mostly means all."""

_INT32: Final = range(-(2**31), 2**31)


def indices(given: Indices, name: str) -> tuple[int, ...]:
    """The indices given, as a tuple; None gives an empty one.

    Raises:
        InvalidRequest: for what is not an integer, and for an empty list, which the contract would take for all.
    """
    if given is None:
        return ()
    several = given if isinstance(given, Iterable) else (given,)
    found = tuple(index(entry, name) for entry in several)
    if not found:
        raise InvalidRequest.at(name, "it is empty; name at least one, or leave it out")
    return found


def index(given: SupportsIndex, name: str) -> int:
    """The integer given, in the contract's 32 bits.

    Raises:
        InvalidRequest: for anything else, booleans included.
    """
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(given, bool | np.bool_) or number not in _INT32:
        raise InvalidRequest.at(name, f"{given!r} was given; a 32-bit integer would do")
    return number


# ---------------------------------------------------------------------- prompts and targets


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or token ids, with an image for a model that sees.

    Client methods take a plain `str` or ids as well; this class is for images, and for ids among a patch's sources.
    """

    input: str | Sequence[SupportsIndex] | npt.NDArray[np.integer]
    """Text is tokenized by the server, with the tokenizer's special tokens. Ids, as [T] or [1, T], are taken as is."""
    image: bytes | None = None
    """PNG or JPEG."""

    @property
    def content(self) -> str | tuple[int, ...]:
        """The text, or the ids as a tuple.

        Raises:
            InvalidRequest: if the ids are not integers or are more than one sequence.
        """
        if isinstance(self.input, str):
            return self.input
        try:
            ids = np.asarray(self.input)
        except (TypeError, ValueError) as error:
            raise InvalidRequest.at("prompt", f"neither text nor token ids: {error}") from None
        if ids.ndim == 2 and ids.shape[0] == 1:
            ids = ids[0]
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidRequest.at(
                "prompt", f"an array of {ids.dtype} {list(ids.shape)} was given; one sequence of token ids would do"
            )
        return tuple(index(int(entry), "prompt") for entry in ids)


PromptLike: TypeAlias = str | Sequence[SupportsIndex] | npt.NDArray[np.integer] | Prompt
TokenLike: TypeAlias = str | SupportsIndex
"""A token by its text, a leading space included, or by its id."""


@dataclass(frozen=True, slots=True)
class Target:
    """A token whose prediction is measured. With a contrast its logit is the difference, target minus contrast."""

    token: TokenLike
    contrast: TokenLike | None = None


TargetLike: TypeAlias = TokenLike | tuple[TokenLike, TokenLike] | Target


def as_targets(given: TargetLike | Sequence[TargetLike] | None) -> tuple[Target, ...]:
    """The targets given: one token, or a sequence of tokens, `(target, contrast)` pairs and `Target`s."""
    if given is None:
        return ()
    if isinstance(given, str | Target | SupportsIndex) and not isinstance(given, np.ndarray):
        return (_as_target(given),)
    return tuple(_as_target(entry) for entry in given)


def _as_target(given: TargetLike) -> Target:
    if isinstance(given, Target):
        return given
    if isinstance(given, tuple):
        if len(given) != 2:
            raise InvalidRequest.at("targets", f"{given!r} was given; a pair is (target, contrast)")
        return Target(*given)
    return Target(given)


# ---------------------------------------------------------------------- places


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model, or several alike. `site()`, `neuron()`, `head()` and `residual()` make one."""

    component: ComponentName
    layers: tuple[int, ...] = ()
    """Blocks from 0."""
    units: tuple[int, ...] = ()
    """Heads where the component has them, else entries of its last axis."""
    positions: tuple[int, ...] = ()
    """Positions of the prompt; negative ones count from its end."""
    from_position: int | None = None
    """Instead of positions: this one and all later, generated ones too."""
    stack: StackName | None = None
    """Which stack of a model that has several; None is the decoder."""

    def __post_init__(self) -> None:
        check_name(self.component, COMPONENTS, "component")
        if self.stack is not None:
            check_name(self.stack, STACKS, "stack")
        if self.positions and self.from_position is not None:
            raise InvalidRequest.at("from_position", "positions were given too; one of the two would do")


def site(
    component: ComponentName,
    *,
    layers: Indices = None,
    units: Indices = None,
    positions: Indices = None,
    from_position: SupportsIndex | None = None,
    stack: StackName | None = None,
) -> Site:
    """A place by the contract's name of its component, such as `"residual_post"` or `"head_out"`.

    An edit names its layers. Where activations are read, and along the axes of a sweep, what is left out means all.
    """
    return Site(
        component,
        indices(layers, "layers"),
        indices(units, "units"),
        indices(positions, "positions"),
        None if from_position is None else index(from_position, "from_position"),
        stack,
    )


def neuron(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: Indices = None,
    from_position: SupportsIndex | None = None,
) -> Site:
    """Neurons: entries of the input of the MLP's down projection, shape [T, N]."""
    return site("neuron", layers=layer, units=unit, positions=position, from_position=from_position)


def head(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: Indices = None,
    from_position: SupportsIndex | None = None,
) -> Site:
    """Attention heads' outputs before the output projection, shape [T, H, d]; `unit` is the head."""
    return site("head_out", layers=layer, units=unit, positions=position, from_position=from_position)


def residual(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: Indices = None,
    from_position: SupportsIndex | None = None,
    at: Literal["pre", "mid", "post"] = "post",
) -> Site:
    """The residual stream before a block, between its attention and its MLP, or after it; shape [T, D]."""
    names: dict[str, ComponentName] = {"pre": "residual_pre", "mid": "residual_mid", "post": "residual_post"}
    check_name(at, names, "at")
    return site(names[at], layers=layer, units=unit, positions=position, from_position=from_position)


# ---------------------------------------------------------------------- edits


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


def patch(site: Site, sources: SourceLike | Iterable[SourceLike] = 0, *, source_positions: Indices = None) -> Edit:
    """Put there what the same site has in the unchanged run of another prompt, or the mean over several.

    A source is a text or a `Prompt`, or an index into the `sources` of the call. One source is interchange (resample)
    ablation, several are mean ablation. `source_positions` are paired with the site's positions, or with those of a
    sweep; left out, they are the same absolute ones.
    """
    several = [sources] if isinstance(sources, str | Prompt) or not isinstance(sources, Iterable) else list(sources)
    if not several:
        raise InvalidRequest.at("sources", "it is empty; name at least one prompt, or its index in the call's sources")
    resolved = tuple(entry if isinstance(entry, str | Prompt) else index(entry, "sources") for entry in several)
    return Edit(site, Patch(resolved, indices(source_positions, "source_positions")))


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
    place = edit.site
    for name, here in (("layers", layers), ("units", units), ("positions", positions)):
        if here is not None and getattr(place, name):
            raise InvalidRequest.at(name, "the edit's site has them too; say it in one of the two places")
    place = _copy(
        place,
        layers=place.layers or indices(layers, "layers"),
        units=place.units or indices(units, "units"),
        positions=place.positions or indices(positions, "positions"),
    )
    axes = (together,) if isinstance(together, str) else tuple(together)
    return Sweep(
        Edit(place, edit.operation),
        tuple(check_name(axis, AXES, "together") for axis in axes),
        None if layer_window is None else index(layer_window, "layer_window"),
        (always,) if isinstance(always, Edit) else tuple(always),
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


# ---------------------------------------------------------------------- methods of a trace

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

    def __post_init__(self) -> None:
        _freeze(self, "components", component_names(self.components))
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


def component_names(given: ComponentName | Iterable[ComponentName] | None) -> tuple[ComponentName, ...]:
    """The components given, as a tuple; None gives an empty one."""
    if given is None:
        return ()
    # A type checker sees str as an iterable of str, and a component name as a str.
    several: Iterable[ComponentName] = (given,) if isinstance(given, str) else given
    return tuple(check_name(name, COMPONENTS, "components") for name in several)


def _freeze(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)
