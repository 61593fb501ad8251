"""`sonde-server` as a process of its own."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.installation import ROOT

COMMAND = ("-m", "sonde_server.cli")
ServerProcess = subprocess.Popen[str]


def environment() -> dict[str, str]:
    """That of a Python of its own with the packages of this checkout, which takes one core."""
    path = os.pathsep.join([str(ROOT / "client"), str(ROOT / "server")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@contextmanager
def server_process(*flags: str, program: tuple[str, ...] = COMMAND) -> Iterator[ServerProcess]:
    """The command, or another program of Python, with its log in `stderr`; killed in the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, *program, *flags], stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    assert process.stderr is not None
    with closing(process.stderr):
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def server_of(
    model: Path | str, port: int = 0, *flags: str, program: tuple[str, ...] = COMMAND
) -> Iterator[ServerProcess]:
    """The same for a model on the CPU."""
    where = ("--model", str(model), "--port", str(port), "--device", "cpu")
    with server_process(*where, *flags, program=program) as process:
        yield process


def wait_for_line(process: ServerProcess, pattern: str) -> str:
    """Reads the log up to a line that matches; its first group."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.fullmatch(pattern, line.rstrip("\n")):
            return found[1]
    raise AssertionError(f"it ended without {pattern!r}: {seen}")


def free_port() -> int:
    """A port that is free now; a restarted server has to come back to the same one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
