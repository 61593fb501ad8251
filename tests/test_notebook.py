"""The notebook of the examples runs from top to bottom in a kernel of its own, and shows what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
SECONDS = 240
EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

source, result, folder, seconds = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
# Sockets of the file system: nothing of the kernel can be reached from elsewhere.
manager = AsyncKernelManager(transport="ipc", ip=folder + "/kernel")
client = NotebookClient(notebook, timeout=int(seconds), km=manager, resources={"metadata": {"path": folder}})
client.execute()
nbformat.write(notebook, result)
"""
FIGURE = re.compile(r"p\((\w+)\) = ([\d.]+)(?:, (?:at random|p\(\w+\) =) ([\d.]+))?")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after a run; a copy is kept where SONDE_NOTEBOOK_OUT says, to be looked at."""
    folder = tmp_path_factory.mktemp("notebook")
    result = Path(os.environ.get("SONDE_NOTEBOOK_OUT") or folder / "executed.ipynb")
    path = os.pathsep.join([str(ROOT / "client"), str(ROOT / "server"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(result), str(folder), str(SECONDS)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    return nbformat.read(result, as_version=4)  # type: ignore[no-untyped-call]


def outputs(notebook: Any, kind: str) -> list[str]:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return [output.text for output in found if output.output_type == "stream"]
    return [str(output.data[kind]) for output in found if kind in output.get("data", {})]


def test_every_cell_runs_in_silence(executed: Any) -> None:
    for cell in executed.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, cell.source
            assert all(output.get("name") != "stderr" for output in cell.outputs), cell.source


def test_its_pictures_are_there(executed: Any) -> None:
    pages = outputs(executed, "text/html")
    assert sum(page.count("<svg") for page in pages) >= 5
    assert sum('class="strip"' in page for page in pages) >= 3
    assert sum("sortable" in page and "<form>" in page for page in pages) >= 3
    assert not any("<script" in page for page in pages)
    assert sum(map(len, pages)) < 1_000_000


def test_what_it_says_of_the_neurons_is_so(executed: Any) -> None:
    (said,) = [text for text in outputs(executed, "text") if "neurons off" in text]
    figures = [(float(chosen), float(random)) for _, chosen, random in FIGURE.findall(said)]
    assert len(figures) == 4
    for chosen, random in figures:
        assert chosen < 0.5 < random


def test_what_it_says_of_steering_is_so(executed: Any) -> None:
    (said,) = [text for text in outputs(executed, "text") if "direction" in text]
    figures = [(float(paris), float(rome)) for _, paris, rome in FIGURE.findall(said)]
    assert figures[0][0] > 0.9
    assert figures[-1][1] > 0.5 > figures[-1][0]
    assert [rome for _, rome in figures] == sorted(rome for _, rome in figures)


def test_the_committed_file_has_no_outputs() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        assert not cell.get("outputs"), "clear the outputs before committing"
        assert cell.get("execution_count") is None
