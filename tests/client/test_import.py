"""Importing the client stays light, and its names are in order."""

import subprocess
import sys

import pytest
import sonde

HEAVY = ("torch", "transformers", "matplotlib", "pandas", "rich", "sonde_server", "sonde.cli")


def loaded_after(statement: str) -> list[str]:
    """The heavy modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


@pytest.mark.parametrize("statement", ["import sonde", "import sonde; sonde.Client().close()"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) == []


@pytest.mark.parametrize("name", ["matplotlib", "rich"])
def test_the_test_above_can_fail(name: str) -> None:
    pytest.importorskip(name)
    assert name in loaded_after(f"import sonde, {name}")


def test_the_command_loads_nothing_heavy() -> None:
    assert loaded_after("import sonde.cli") == ["sonde.cli"]


def test_every_public_name_exists_once() -> None:
    assert len(set(sonde.__all__)) == len(sonde.__all__)
    assert all(hasattr(sonde, name) for name in sonde.__all__)
    public = {
        name
        for name, value in vars(sonde).items()
        if not name.startswith("_") and not hasattr(value, "__path__") and type(value).__name__ != "module"
    }
    assert public | {"__version__"} == set(sonde.__all__)
