"""Sites: which values of the model are meant."""

import enum
from collections.abc import Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.places import LAYERLESS, UNIT_SWEPT, Component, Site
from .fields import MOST_SITES, Reader


def read_component(number: int, path: str, reader: Reader) -> Component | None:
    """A component that the hosted model has."""
    try:
        component = Component(number)
    except ValueError:
        given = "no component was given" if number == 0 else f"component {number} is not known"
        known = ", ".join(component.name for component in Component)
        reader.problems.add(path, f"{given}; there are {known}")
        return None
    if reason := reader.model.unavailable.get(component):
        reader.problems.refuse(path, reason)
    return component


class Role(enum.Enum):
    """What a site is named for, which decides what an empty list means."""

    EDIT = "edit"
    SWEEP = "sweep"
    READ = "read"


def read_site(message: pb.Site, path: str, reader: Reader, tokens: int | None, role: Role) -> Site | None:
    """A site in a prompt of so many tokens. A sweep's site comes back with its axes written out."""
    _check_stack(message.stack, f"{path}.stack", reader)
    component = read_component(message.component, f"{path}.component", reader)
    if component is None:
        return None
    layers = _read_layers(message, component, path, reader, role)
    count = reader.model.units(component)
    units: tuple[int, ...] | None = None
    if message.units:
        units = reader.indices(message.units, count, f"{path}.units", "unit")
    elif role is Role.SWEEP and component in UNIT_SWEPT:
        units = tuple(range(count))
    from_position = _read_from_position(message, path, reader, role)
    positions: tuple[int, ...] | None = None
    if message.positions:
        positions = reader.positions(message.positions, tokens, f"{path}.positions")
    elif role is Role.SWEEP and not message.HasField("from_position") and tokens is not None:
        positions = tuple(range(tokens))
    return Site(component, layers, units, positions, from_position)


def _read_layers(message: pb.Site, component: Component, path: str, reader: Reader, role: Role) -> tuple[int, ...]:
    if component in LAYERLESS:
        if message.layers:
            given = ", ".join(str(layer) for layer in message.layers[:8])
            reader.problems.add(f"{path}.layers", f"{component.name} takes no layer, {given} was given; leave it empty")
        return (0,)
    layers = reader.model.layers
    if message.layers:
        return reader.layers(message.layers, f"{path}.layers")
    if role is Role.EDIT:
        reader.problems.add(
            f"{path}.layers", f"an edit names its layers and none was given; give some of 0 to {layers - 1}"
        )
    return tuple(range(layers))


def _read_from_position(message: pb.Site, path: str, reader: Reader, role: Role) -> int | None:
    if not message.HasField("from_position"):
        return None
    field = f"{path}.from_position"
    if role is Role.READ:
        reader.problems.add(field, "only edits take it; give positions, or none for all")
        return None
    if message.positions:
        reader.problems.add(field, "it was given beside positions; give one of the two")
    value = message.from_position
    if value < 0:
        # Positions beyond the prompt are meant too, so there is no end to count from.
        reader.problems.add(field, f"{value} was given; count from the prompt's start, 0 or more")
        return None
    return value


def _check_stack(number: int, path: str, reader: Reader) -> None:
    if number in (pb.STACK_UNSPECIFIED, pb.STACK_DECODER):
        return
    names = {value: name for name, value in pb.Stack.items()}
    if number in names:
        name = names[number].removeprefix("STACK_")  # type: ignore[index]
        reader.problems.refuse(path, f"the hosted model has no {name}; it is a DECODER alone")
    else:
        reader.problems.add(path, f"stack {number} is not known; give DECODER or leave it unset")


def read_sites(messages: Sequence[pb.Site], path: str, tokens: int | None, reader: Reader) -> tuple[Site, ...]:
    """Sites that are read."""
    if not reader.listed(len(messages), MOST_SITES, path, "sites"):
        return ()
    sites = [read_site(site, f"{path}[{i}]", reader, tokens, Role.READ) for i, site in enumerate(messages)]
    return tuple(site for site in sites if site is not None)


def encode_site(site: Site) -> pb.Site:
    """A site as the contract has it."""
    return pb.Site(
        component=pb.Component.ValueType(site.component),
        layers=() if site.component in LAYERLESS else site.layers,
        units=site.units or (),
        positions=site.positions or (),
    )
