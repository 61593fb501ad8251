"""A server for programs of other languages, and what it takes to build one of them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from sonde_server.config import Settings
from sonde_server.serving.server import Server

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 300.0
RUN_SECONDS = 120.0
UNREACHABLE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT")
"""What npm says where there is no registry."""


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    torch.set_num_threads(1)
    with Server(Settings(port=0, device="cpu", dtype="float32")) as server:
        yield server


@pytest.fixture(scope="session")
def address(server: Server) -> str:
    return server.address


class Workshop:
    """A copy of an example beside the contract, as a checkout has them, without anything built before."""

    def __init__(self, directory: Path, example: str) -> None:
        self.directory = directory / "examples" / example
        shutil.copytree(ROOT / "proto", directory / "proto", ignore=shutil.ignore_patterns("__pycache__"))
        built = shutil.ignore_patterns("node_modules", "gen", "dist", "build")
        shutil.copytree(ROOT / "examples" / example, self.directory, ignore=built)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        seconds: float = RUN_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """What the program prints. Fails with all that it said where it does not end well."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def build(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Runs a build; skips where it could not fetch what it needs."""
        try:
            self.run(command, seconds=BUILD_SECONDS, environment=environment)
        except AssertionError as failure:
            if UNREACHABLE.search(str(failure)):
                pytest.skip(f"the packages cannot be fetched here: {command}")
            raise


def need(*programs: str) -> None:
    """Skips, by name, where a program or a directory is not installed."""
    missing = [one for one in programs if shutil.which(one) is None and not Path(one).is_dir()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
