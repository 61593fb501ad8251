"""The distributions, built once, and environments at both ends of the requirements' ranges."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.release.ends import TOOLS, constraints
from tests.support.installation import ROOT, Installation


@dataclass(frozen=True)
class Distributions:
    """What is uploaded."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The sdist, and the wheel that is built from what is in it, as by an installer that finds no wheel."""
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", directory, ROOT], check=True, capture_output=True)
    (sdist,) = directory.glob("*.tar.gz")
    (wheel,) = directory.glob("*.whl")
    return Distributions(sdist, wheel)


class Installed(Installation):
    """An installation with what the tests are run with, and a copy of the tests beside it, but of no sources."""

    def __init__(self, directory: Path, wheel: Path, end: str, extras: Iterable[str]) -> None:
        super().__init__(directory)
        # What is old uses what its newer neighbours have deprecated.
        self._options = ("-W", "default::DeprecationWarning") if end == "lowest" else ()
        limits = constraints(directory, end, extras)
        self.pip_install("--constraint", str(limits), f"{wheel}[{','.join(extras)}]", *TOOLS)
        for part in ("tests", "examples"):
            unwanted = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(ROOT / part, self.elsewhere / part, ignore=unwanted)
        shutil.copy(ROOT / "pyproject.toml", self.elsewhere)

    def test(self, *arguments: str) -> None:
        """Runs tests; what they print is shown."""
        where = self.python("import sonde; print(sonde.__file__)")
        assert Path(where).is_relative_to(self.scripts.parent / "lib"), where
        command = [str(self.scripts / "python"), "-m", "pytest", "-q", *self._options, *arguments]
        done = subprocess.run(command, cwd=self.elsewhere, env=self.environment, check=False)
        assert done.returncode == 0


@pytest.fixture(scope="module", params=["lowest", "highest"])
def end(request: pytest.FixtureRequest) -> str:
    """Which end of the ranges."""
    return str(request.param)


@pytest.fixture(scope="module")
def client_side(end: str, distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp(f"client-{end}"), distributions.wheel, end, ("plot", "safetensors"))


@pytest.fixture(scope="module")
def server_side(end: str, distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp(f"server-{end}"), distributions.wheel, end, ("server", "telemetry"))
