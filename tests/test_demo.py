"""The tour runs to its end, and leaves no server behind, however it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 180.0
LISTENS = re.compile(r"listens on ([\d.]+):(\d+)")

pytestmark = pytest.mark.system


def start(*arguments: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(ROOT / "client"), str(ROOT / "server"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "demo.py"), *arguments],
        env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_stopped(output: str) -> None:
    found = LISTENS.search(output)
    assert found, output
    with socket.socket() as probe:
        assert probe.connect_ex((found[1], int(found[2]))) != 0


def test_the_tour_shows_its_five_parts_and_draws_the_trace(tmp_path: Path) -> None:
    with start("--out", str(tmp_path / "out")) as demo:
        output, errors = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, errors
    assert re.findall(r"^(\d)\. ", output, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert (tmp_path / "out" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"[\d,]+ of [\d,]+", errors), "progress"
    assert_stopped(output)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_server_too(number: signal.Signals, status: int, tmp_path: Path) -> None:
    with start("--out", str(tmp_path)) as demo:
        assert demo.stdout is not None
        seen = ""
        while not LISTENS.search(seen):
            line = demo.stdout.readline()
            assert line, seen
            seen += line
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == status
    assert_stopped(seen + rest)


def test_a_model_that_cannot_be_loaded_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    with start("--out", str(tmp_path), "--model", str(tmp_path / "nowhere")) as demo:
        _, errors = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1
    assert "nowhere" in errors
    assert "Traceback" not in errors
