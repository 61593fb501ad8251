"""A virtual environment with Sonde in it, and what is run there, away from the sources."""

import os
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Installation:
    """A virtual environment, and what is run in it, away from the sources."""

    def __init__(self, directory: Path) -> None:
        self.scripts = directory / ("Scripts" if os.name == "nt" else "bin")
        self.elsewhere = directory / "elsewhere"
        venv.create(directory, with_pip=True)
        self.elsewhere.mkdir()

    @property
    def environment(self) -> Mapping[str, str]:
        """This one, less what would let the sources be found by accident."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SONDE_"))}

    def run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [self.scripts / program, *arguments],
            cwd=self.elsewhere,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0 or not check, result.stdout + result.stderr
        return result

    def pip_install(self, *arguments: str) -> None:
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)

    def python(self, program: str) -> str:
        return self.run("python", "-c", program).stdout.strip()
