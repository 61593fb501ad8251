"""Every room of the server can be read without those above it: what each may import, and no circle.

The rooms are the folders of `sonde_server`. Imports count wherever they are written: inside functions, and for the type
checker alone. tests/client/test_structure.py does the same for the client.
"""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import sonde_server

ROOT = Path(sonde_server.__file__).parent
PACKAGE = "sonde_server"
ALWAYS = frozenset({"", "config", "errors"})
"""What every room may import: the package itself, its settings and its errors."""
ROOMS: Mapping[str, frozenset[str]] = {
    "questions": frozenset(),
    "builtin": frozenset(),
    "model": frozenset({"questions", "builtin"}),
    "engine": frozenset({"questions", "model"}),
    "sharing": frozenset({"questions", "model", "engine"}),
    "methods": frozenset({"questions", "model", "engine", "sharing"}),
    "wire": frozenset({"questions", "model"}),
    "serving": frozenset({"questions", "model", "engine", "sharing", "methods", "wire", "in_process"}),
    "in_process": frozenset({"serving"}),
    "ray": frozenset({"sharing", "serving", "in_process"}),
}
"""By room, the rooms that it may import from, beside itself."""
FOREIGN: Mapping[str, frozenset[str]] = {
    "questions": frozenset({"torch", "transformers", "grpc", "google", "sonde"}),
    "model": frozenset({"grpc", "google", "sonde"}),
    "engine": frozenset({"grpc", "google", "sonde"}),
    "sharing": frozenset({"grpc", "google", "sonde"}),
    "methods": frozenset({"grpc", "google", "sonde"}),
    "wire": frozenset({"torch", "transformers", "grpc"}),
    "serving": frozenset({"torch"}),
    "in_process": frozenset({"torch", "transformers"}),
    "ray": frozenset({"torch", "transformers"}),
    "builtin": frozenset({"grpc", "google", "sonde"}),
}
"""By room, the packages that it does not know. `sonde` is the client, with the generated code of the contract."""


def name_of(path: Path) -> str:
    """The module of a file."""
    parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(source: str, here: str, *, package: bool) -> Iterator[str]:
    """The modules that a source imports, by their full names; `package`: it is that of an `__init__.py`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = here.split(".")
            above = parts[: len(parts) - node.level + package] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if whole in MODULES else module


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """By module, everything that it imports."""
    return {
        name: frozenset(imported(path.read_text(encoding="utf-8"), name, package=path.stem == "__init__"))
        for name, path in MODULES.items()
    }


def room_of(module: str) -> str:
    """The room of a module; empty: the package itself."""
    return module.split(".")[1] if "." in module else ""


def inside(edges: Mapping[str, frozenset[str]]) -> dict[str, set[str]]:
    """The imports between modules of the server."""
    return {name: {one for one in targets if one in MODULES} for name, targets in edges.items()}


def test_every_room_is_listed() -> None:
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(ROOMS) == set(FOREIGN)
    assert sum(map(len, inside(graph()).values())) > 300


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_it_alone(room: str) -> None:
    allowed = ROOMS[room] | ALWAYS | {room}
    wrong = [
        f"{name} imports {target}"
        for name, targets in inside(graph()).items()
        if room_of(name) == room
        for target in sorted(targets)
        if room_of(target) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_no_more_packages_than_it_should(room: str) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        if room_of(name) == room
        for target in sorted(targets)
        if target.split(".")[0] in FOREIGN[room]
    ]
    assert wrong == []


def test_imports_make_no_circle() -> None:
    edges = inside(graph())
    order = list(graphlib.TopologicalSorter(edges).static_order())
    assert set(order) == set(MODULES)


def test_a_circle_is_found() -> None:
    edges = inside(graph())
    assert f"{PACKAGE}.engine.layout" in edges[f"{PACKAGE}.sharing.session"]
    edges[f"{PACKAGE}.engine.layout"].add(f"{PACKAGE}.sharing.session")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(edges).prepare()


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
import torch
from typing import TYPE_CHECKING
from . import runs
from ..model.anatomy import Decoder
if TYPE_CHECKING:
    from ..questions.places import Site
def late():
    from .layout import Row
"""
    found = set(imported(source, f"{PACKAGE}.engine.execute", package=False))
    names = {"engine.runs", "model.anatomy", "questions.places", "engine.layout"}
    assert found == {"torch", "typing", *(f"{PACKAGE}.{name}" for name in names)}
    assert set(imported("from .layout import Row", f"{PACKAGE}.engine", package=True)) == {f"{PACKAGE}.engine.layout"}
