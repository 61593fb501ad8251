"""Sites: which values of the model a request means."""

import enum
from collections.abc import Sequence

from sonde.v1 import inspection_pb2 as pb

from ..questions.places import LAYERLESS, UNIT_SWEPT, Component, Site
from ..questions.prompts import Prompt
from .fields import MOST_LISTED, MOST_SITES, Reader
from .names import read_one, read_rows


def read_component(number: int, path: str, reader: Reader) -> Component | None:
    """A component that the hosted model has."""
    try:
        component = Component(number)
    except ValueError:
        known = ", ".join(component.name for component in Component)
        reader.problems.add(path, f"expected one of {known}, got {f'component {number}' if number else 'none'}")
        return None
    if reason := reader.model.unavailable.get(component):
        reader.problems.refuse(path, reason)
    return component


def read_components(numbers: Sequence[int], path: str, reader: Reader) -> tuple[Component, ...]:
    """Several components, each at most once."""
    if not reader.listed(len(numbers), MOST_LISTED, path, "components"):
        return ()
    components = [read_component(number, f"{path}[{i}]", reader) for i, number in enumerate(numbers)]
    return tuple(Component(value) for value in reader.distinct(components, path, "component"))


class Role(enum.Enum):
    """What a site is given for, which decides what an empty list in it means."""

    EDIT = "edit"
    SWEEP = "sweep"
    READ = "read"


def read_site(message: pb.Site, path: str, reader: Reader, prompt: Prompt | None, role: Role) -> Site | None:
    """A site in a prompt. The axes of a sweep's site are resolved. Named positions are rows, and may come twice."""
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
    _check_one_way(message, path, reader)
    from_position = _read_from_position(message, path, reader, prompt, role)
    positions: tuple[int, ...] | None = None
    rows = None
    if message.named_positions:
        field, edited = f"{path}.named_positions", role is not Role.READ
        rows = read_rows(message.named_positions, prompt, field, reader, filled=edited)
        if rows is None:
            return None
        positions = tuple(position for row in rows for position in row)
    elif message.positions:
        positions = reader.positions(
            message.positions, None if prompt is None else len(prompt.tokens), f"{path}.positions"
        )
    elif role is Role.SWEEP and not from_there(message) and prompt is not None:
        positions = tuple(range(len(prompt.tokens)))
    return Site(component, layers, units, positions, from_position, rows)


def from_there(message: pb.Site) -> bool:
    """Whether a site means all positions from one on."""
    return message.HasField("from_position") or message.HasField("named_from_position")


def _check_one_way(message: pb.Site, path: str, reader: Reader) -> None:
    given = [name for name in ("positions", "named_positions") if getattr(message, name)]
    given += [name for name in ("from_position", "named_from_position") if message.HasField(name)]
    for other in given[1:]:
        reader.problems.add(f"{path}.{other}", f"expected one of {given[0]} and {other}, got both")


def _read_layers(message: pb.Site, component: Component, path: str, reader: Reader, role: Role) -> tuple[int, ...]:
    if component in LAYERLESS:
        if message.layers:
            given = ", ".join(str(layer) for layer in message.layers[:8])
            reader.problems.add(f"{path}.layers", f"expected none, because {component.name} has no layers, got {given}")
        return (0,)
    layers = reader.model.layers
    if message.layers:
        return reader.layers(message.layers, f"{path}.layers")
    if role is Role.EDIT:
        reader.problems.add(
            f"{path}.layers", f"expected the layers of the edit, from {-layers} to {layers - 1}, got none"
        )
    return tuple(range(layers))


def _read_from_position(message: pb.Site, path: str, reader: Reader, prompt: Prompt | None, role: Role) -> int | None:
    if not from_there(message):
        return None
    name = "from_position" if message.HasField("from_position") else "named_from_position"
    field = f"{path}.{name}"
    if role is Role.READ:
        reader.problems.add(
            field, f"expected no {name}, because only edits take it. Use positions; if unset, all are read"
        )
        return None
    if name == "named_from_position":
        return read_one(message.named_from_position, prompt, field, reader)
    value = message.from_position
    if value < 0:
        # It covers generated positions too, so there is no end to count from.
        reader.problems.add(field, f"expected 0 or more, counted from the start of the prompt, got {value}")
        return None
    return value


def _check_stack(number: int, path: str, reader: Reader) -> None:
    if number in (pb.STACK_UNSPECIFIED, pb.STACK_DECODER):
        return
    names = {value: name for name, value in pb.Stack.items()}
    if number in names:
        name = names[number].removeprefix("STACK_")  # type: ignore[index]
        reader.problems.refuse(path, f"the hosted model is a DECODER alone, and has no {name}")
    else:
        reader.problems.add(path, f"expected DECODER, got stack {number} (leave it unset for the default)")


def read_sites(messages: Sequence[pb.Site], path: str, prompt: Prompt | None, reader: Reader) -> tuple[Site, ...]:
    """Sites that are read."""
    if not reader.listed(len(messages), MOST_SITES, path, "sites"):
        return ()
    sites = [read_site(site, f"{path}[{i}]", reader, prompt, Role.READ) for i, site in enumerate(messages)]
    return tuple(site for site in sites if site is not None)


def encode_site(site: Site) -> pb.Site:
    """A site as the contract has it."""
    return pb.Site(
        component=pb.Component.ValueType(site.component),
        layers=() if site.component in LAYERLESS else site.layers,
        units=site.units or (),
        positions=site.positions or (),
    )
