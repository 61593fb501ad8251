"""Places in the model: where activations are read, and where edits are made."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, SupportsIndex

from sonde._ask.given import several
from sonde._ask.indices import Indices, index, indices
from sonde._ask.names import COMPONENTS, STACKS, ComponentName, StackName, check_name
from sonde.errors import InvalidRequest


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


def component_names(given: ComponentName | Iterable[ComponentName] | None) -> tuple[ComponentName, ...]:
    """The components given, as a tuple; None gives an empty one."""
    if given is None:
        return ()
    # A type checker sees str as an iterable of str, and a component name as a str.
    chosen: Iterable[ComponentName] = (
        (given,) if isinstance(given, str) else several(given, "components", "names of components")
    )
    return tuple(check_name(name, COMPONENTS, "components") for name in chosen)
