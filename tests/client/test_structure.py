"""Every part of the client can be read without those above it: its imports make no circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sonde
from sonde._methods.method import METHODS, Method

ROOT = Path(sonde.__file__).parent
LAYERS = (
    ("errors", "_version", "v1", "_arrays"),
    ("_show", "_ask"),
    ("_answers",),
    ("_wire", "_connection"),
    ("_methods", "_asking"),
    ("_base", "_signatures", "storage"),
    ("client", "aio", "annotations", "_options"),
    ("_needed",),
    ("_readable",),
    ("questions", "cli"),
    ("__init__", "__main__"),
)
"""The wings and files of the package, from the lowest. Each may import from those below it, and a wing from itself."""


def name_of(path: Path) -> str:
    """The module of a file."""
    parts = ("sonde", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imported(source: str, here: str) -> Iterator[str]:
    """The modules of the package that a source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{here} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES or node.module in MODULES:
                    yield whole if whole in MODULES else str(node.module)


def graph() -> dict[str, set[str]]:
    """By module, the modules it imports."""
    return {name: set(imported(path.read_text(encoding="utf-8"), name)) for name, path in MODULES.items()}


def layer_of(name: str) -> tuple[int, str]:
    """How high a module is, and in which wing."""
    wing = name.split(".")[1] if "." in name else "__init__"
    return next(height for height, wings in enumerate(LAYERS) if wing in wings), wing


def test_imports_make_no_circle() -> None:
    edges = graph()
    assert sum(map(len, edges.values())) > 150
    order = list(graphlib.TopologicalSorter(edges).static_order())
    assert set(order) == set(MODULES)


def test_a_circle_is_found() -> None:
    edges = graph()
    assert "sonde._show.palette" in edges["sonde._methods.causal_tracing"]
    edges["sonde._show.palette"].add("sonde._methods.causal_tracing")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(edges).prepare()


def test_imports_point_downward() -> None:
    wrong = []
    for name, targets in graph().items():
        height, wing = layer_of(name)
        for target in targets:
            below, other = layer_of(target)
            if below >= height and wing != other:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
import sonde.errors
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from sonde._ask.sites import Site
def late():
    from sonde import cli
"""
    assert set(imported(source, "here")) == {"sonde.errors", "sonde._ask.sites", "sonde.cli"}


def test_every_method_that_is_exported_has_registered_itself() -> None:
    exported = (getattr(sonde, name) for name in sonde.__all__)
    methods = {one for one in exported if isinstance(one, type) and issubclass(one, Method)}
    assert methods
    assert methods == set(METHODS)


def test_a_method_of_a_trace_is_known_only_where_it_is_exported() -> None:
    edges = graph()
    methods = {method.__module__ for method in METHODS}
    # The clients have a short form of one. The ready-made questions and the command use methods as any program does.
    users = {name for name in edges if name not in methods and not name.startswith(("sonde.questions", "sonde.cli"))}
    short = {"sonde._methods.token_probability": {"sonde._signatures"}}
    for method in methods:
        known = {name for name in users if method in edges[name]}
        assert known == {"sonde"} | short.get(method, set())
