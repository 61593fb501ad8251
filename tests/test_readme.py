"""What the README shows works: its Python from top to bottom, and its commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sonde_server.app import Server
from sonde_server.config import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN_ADDRESS = "localhost:50051"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECONDS = 120.0


def blocks(language: str) -> list[tuple[int, str]]:
    """The code blocks of a language, each with the line that its code begins on."""
    return [
        (README.count("\n", 0, found.start(2)) + 1, found[2])
        for found in BLOCK.finditer(README)
        if found[1] == language
    ]


def commands() -> list[str]:
    return [line.removeprefix("$ ") for _, code in blocks("console") for line in code.splitlines() if line]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model, as `sonde-server` starts it, on a free port."""
    with Server(Settings(port=0, device="cpu")) as server:
        yield server.address


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_examples_run_from_top_to_bottom(address: str, in_empty_folder: Path, capsys: Any) -> None:
    shared: dict[str, Any] = {"__name__": "readme"}
    found = blocks("python")
    assert len(found) >= 6
    for line, code in found:
        assert "print(" in code or SHOWN_ADDRESS in code or "client." in code
        # Blank lines in front make a traceback's line numbers those of the README.
        source = "\n" * (line - 1) + code.replace(SHOWN_ADDRESS, address)
        exec(compile(source, str(ROOT / "README.md"), "exec"), shared)  # noqa: S102 - our own README
    assert (in_empty_folder / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "list.interventions[0].edits[0].site.layers[0]" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("sonde ")])
def test_the_commands_run(command: str, address: str, in_empty_folder: Path) -> None:
    arguments = [sys.executable, "-m", "sonde.cli", *shlex.split(command)[1:]]
    path = os.pathsep.join([str(ROOT / "client"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"SONDE_ADDRESS": address, "PYTHONPATH": path}
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    if "--plot" in command:
        assert (in_empty_folder / "trace.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("buf ")])
def test_the_server_answers_a_tool_that_knows_nothing_of_the_contract(
    command: str, address: str, in_empty_folder: Path
) -> None:
    beside = Path(sys.executable).with_name("buf")
    buf = str(beside) if beside.exists() else shutil.which("buf")
    assert buf, "buf comes with the dev extra"
    arguments = [buf, *shlex.split(command.replace(SHOWN_ADDRESS, address))[1:]]
    environment = os.environ | {"HOME": str(in_empty_folder)}
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    assert '"provenance"' in ran.stdout


def test_every_command_shown_is_run() -> None:
    assert all(command.startswith(("sonde ", "buf ")) for command in commands())


def test_the_files_that_it_names_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing


def test_every_component_and_edit_has_its_row() -> None:
    import sonde
    from sonde.names import COMPONENTS

    assert [name for name in COMPONENTS if f"| `{name}` |" not in README] == []
    edits = ["scale", "replace", "add", "multiply", "patch", "noise", "project_out", "knockout"]
    assert all(hasattr(sonde, edit) and f"| `{edit}(" in README for edit in edits)
