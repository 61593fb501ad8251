"""Sites: the places in a model where activations are read and edits are made."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sonde._ask.given import several
from sonde._ask.indices import Indices, indices
from sonde._ask.named import NamedPositions, PositionLike, Positions, PositionsLike
from sonde._ask.named import position as position_of
from sonde._ask.named import positions as positions_of
from sonde._ask.names import COMPONENTS, STACKS, ComponentName, StackName, check_name
from sonde.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model, or several of the same component. Made by `site()`, `neuron()`, `head()`, `residual()`."""

    component: ComponentName
    layers: tuple[int, ...] = ()
    """Blocks, counted from 0."""
    units: tuple[int, ...] = ()
    """Heads if the component has them, otherwise entries of its last axis."""
    positions: Positions = ()
    """Positions in the prompt, by number (negative ones count from the end) or by name."""
    from_position: int | NamedPositions | None = None
    """Instead of `positions`: this position and all later ones, including generated ones."""
    stack: StackName | None = None
    """The stack, in a model that has several; None means the decoder."""

    def __post_init__(self) -> None:
        check_name(self.component, COMPONENTS, "component")
        if self.stack is not None:
            check_name(self.stack, STACKS, "stack")
        if self.positions and self.from_position is not None:
            raise InvalidRequest.at("from_position", "pass either `positions` or `from_position`, not both")

    def row_labels(self, *, by_row: bool = False) -> tuple[int | str, ...]:
        """Labels for the positions that are named here; empty if they are numbers or none.

        With `by_row`, where positions are joined in rows, also those of numbers, and "all" if there are none.
        """
        if self.positions and isinstance(self.positions[0], NamedPositions):
            return tuple(map(str, self.positions))
        return tuple(entry for entry in self.positions if isinstance(entry, int)) or ("all",) if by_row else ()


def site(
    component: ComponentName,
    *,
    layers: Indices = None,
    units: Indices = None,
    positions: PositionsLike = None,
    from_position: PositionLike | None = None,
    stack: StackName | None = None,
) -> Site:
    """Return the site with this component name, such as `"residual_post"` or `"head_out"`.

    The site of an edit must name its layers. When activations are read, and along the axes of a sweep, an argument that
    is left out means all. Positions can be named, as in `positions="subject.last"` (see `sonde.span`).
    """
    return Site(
        component,
        indices(layers, "layers"),
        indices(units, "units"),
        positions_of(positions, "positions"),
        None if from_position is None else position_of(from_position, "from_position"),
        stack,
    )


def neuron(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: PositionsLike = None,
    from_position: PositionLike | None = None,
) -> Site:
    """Return a site of MLP neurons: entries of the input to the MLP's down projection, shape [T, N].

    Args:
        layer: one block or several. An edit needs it; in a sweep, and when activations are read, the default, None,
            means all.
        unit: one neuron or several; the default, None, means all.
        position: one position or several, by number (negative ones count from the end) or by name, such as `"end"` or
            `"subject.last"`; the default, None, means all.
        from_position: instead of `position`: this position and all later ones, including generated ones.
    """
    return site("neuron", layers=layer, units=unit, positions=position, from_position=from_position)


def head(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: PositionsLike = None,
    from_position: PositionLike | None = None,
) -> Site:
    """Return a site of attention head outputs, before the output projection, shape [T, H, d].

    Args:
        layer: one block or several. An edit needs it; in a sweep, and when activations are read, the default, None,
            means all.
        unit: one head or several; the default, None, means all.
        position: one position or several, by number (negative ones count from the end) or by name, such as `"end"` or
            `"subject.last"`; the default, None, means all.
        from_position: instead of `position`: this position and all later ones, including generated ones.
    """
    return site("head_out", layers=layer, units=unit, positions=position, from_position=from_position)


def residual(
    *,
    layer: Indices = None,
    unit: Indices = None,
    position: PositionsLike = None,
    from_position: PositionLike | None = None,
    at: Literal["pre", "mid", "post"] = "post",
) -> Site:
    """The residual stream, shape [T, D]: before a block, between its attention and its MLP, or after the block."""
    names: dict[str, ComponentName] = {"pre": "residual_pre", "mid": "residual_mid", "post": "residual_post"}
    check_name(at, names, "at")
    return site(names[at], layers=layer, units=unit, positions=position, from_position=from_position)


def component_names(given: ComponentName | Iterable[ComponentName] | None) -> tuple[ComponentName, ...]:
    """Return component names as a tuple; None becomes an empty one."""
    if given is None:
        return ()
    # To a type checker, a component name is a str, and thus also an iterable of str.
    chosen: Iterable[ComponentName] = (
        (given,) if isinstance(given, str) else several(given, "components", "names of components")
    )
    return tuple(check_name(name, COMPONENTS, "components") for name in chosen)
