"""The command as a process: on consoles that lack characters, with readers that go away and streams that are closed."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from sonde.v1 import inspection_pb2 as pb

ENCODINGS = ["ascii", "latin-1"]
PROMPT = "Der Kölner Dom 漢 🗼"


def environment(encoding: str | None) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SONDE_", "LC_", "LANG"))
    }
    path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    return kept | path | ({} if encoding is None else {"PYTHONIOENCODING": encoding})


def command(peer: Any, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sonde.cli", "--address", peer.address, *arguments]


def process(peer: Any, *arguments: str, encoding: str | None = "utf-8", **how: Any) -> Any:
    """The command, ended. `how` is where its output goes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(encoding)} | how
    return subprocess.run(command(peer, *arguments), timeout=60, check=False, **streams)


def run(peer: Any, *arguments: str, encoding: str | None = "utf-8", **how: Any) -> tuple[int, str, str]:
    """The exit status, what came out, and what went wrong."""
    ended = process(peer, *arguments, encoding=encoding, **how)
    return ended.returncode, ended.stdout.decode(encoding or "utf-8"), ended.stderr.decode(encoding or "utf-8")


def foreign(answers: Any) -> pb.RunContext:
    """A context whose tokens are in three scripts."""
    context: pb.RunContext = answers.context()
    for token, text in zip(context.clean.top_tokens, (" Köln", "漢🗼"), strict=True):
        token.text = text
    context.tokens[0].text = "Ġдом"
    context.targets[0].text = " Köln"
    return context


@pytest.fixture
def questions(answers: Any) -> dict[str, tuple[list[Any], tuple[str, ...]]]:
    """What the peer answers and what is asked, for every kind of picture in the output."""
    causal, lens = answers.causal(), answers.lens(4)
    causal[0].context.CopyFrom(foreign(answers))
    lens.context.CopyFrom(foreign(answers))
    readings = answers.readings(0, [[-1.0]])
    ended = [pb.Generated(run=run, tokens=[pb.Token(id=7, text="Ü漢")], text="Ü漢", finish_reason=1) for run in (-1, 0)]
    change = pb.InterveneResponse(context=foreign(answers), readings=readings)
    generated = pb.InterveneResponse(context=foreign(answers), readings=readings, generated=ended)
    return {
        "prediction": ([pb.TraceResponse(context=foreign(answers))], ("trace", PROMPT)),
        "causal": (causal, ("trace", PROMPT, "--subject", "Dom")),
        "lens": ([lens], ("trace", PROMPT, "--lens")),
        "intervene": ([change], ("intervene", PROMPT, "--mlp", "1")),
        "generate": ([generated], ("generate", PROMPT)),
    }


KINDS = ["prediction", "causal", "lens", "intervene", "generate"]


def without_bars(text: str) -> str:
    """What is left beside bars and rules, which have stand-ins of their own."""
    return "".join(character for character in text if character not in "█▉▊▋▌▍▎▏░─·#+.-")


@pytest.mark.parametrize("name", KINDS)
def test_every_console_is_written_to(peer: Any, questions: Any, name: str) -> None:
    peer.steps, arguments = questions[name]
    whole = run(peer, *arguments)
    assert (whole[0], whole[2]) == (0, "")
    assert not whole[1].isascii()
    for encoding in ENCODINGS:
        status, out, err = run(peer, *arguments, encoding=encoding)
        assert (status, err) == (0, "")
        expected = without_bars(whole[1]).encode(encoding, "backslashreplace").decode(encoding)
        assert without_bars(out) == expected
        assert len(out.splitlines()) == len(whole[1].splitlines())


def test_bars_stay_as_long_as_they_are(peer: Any, questions: Any) -> None:
    peer.steps, arguments = questions["prediction"]
    plain, whole = run(peer, *arguments, encoding="ascii")[1], run(peer, *arguments)[1]
    assert "█" * 18 in whole
    assert "#" * 18 in plain
    assert "#" * 19 not in plain
    assert "----" in plain


@pytest.mark.parametrize("name", KINDS)
def test_json_is_the_same_on_every_console(peer: Any, questions: Any, name: str) -> None:
    peer.steps, arguments = questions[name]
    whole = run(peer, *arguments, "--json")[1]
    assert not whole.isascii()
    for encoding in ENCODINGS:
        status, out, err = run(peer, *arguments, "--json", encoding=encoding)
        assert (status, err) == (0, "")
        assert json.loads(out) == json.loads(whole)


def test_a_console_without_a_locale_is_written_to(peer: Any, questions: Any) -> None:
    peer.steps, arguments = questions["causal"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ("trace", "The Eiffel Tower", *arguments[2:])
    status, out, err = run(peer, *arguments, encoding=None, env=environment(None) | locale)
    assert (status, err) == (0, "")
    assert "\\u0434" in out


def test_an_error_says_what_it_says_on_every_console(peer: Any) -> None:
    for encoding in (*ENCODINGS, "utf-8"):
        status, out, err = run(peer, "model", "--address", "Köln/漢", encoding=encoding)
        assert (status, out) == (2, "")
        given = "'Köln/漢'".encode(encoding, "backslashreplace").decode(encoding)
        assert err.startswith(f"sonde: address: expected host:port, got {given}")


def test_a_coloured_heat_map_is_drawn_on_an_ascii_terminal(peer: Any, questions: Any) -> None:
    peer.steps, arguments = questions["causal"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(peer, *arguments),
        env=environment("ascii") | {"TERM": "xterm-256color"},
        stdout=follower,
        stderr=subprocess.PIPE,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says so when the other side is closed.
            break
        if not part:
            break
        shown += part
    os.close(leader)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"\x1b[48;5;" in shown
    assert shown.isascii()


# ---------------------------------------------------------------------- readers and streams


@pytest.mark.parametrize("arguments", [("--help",), ("trace", "--help"), ("trace", "a"), ("generate", "a")])
def test_a_reader_that_has_gone_is_no_failure(peer: Any, questions: Any, arguments: tuple[str, ...]) -> None:
    peer.steps = questions["generate" if arguments[0] == "generate" else "prediction"][0]
    reading, writing = os.pipe()
    os.close(reading)
    ended = process(peer, *arguments, stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_errors_that_nobody_reads_keep_their_status(peer: Any, fail: Any) -> None:
    import grpc

    peer.steps = [fail(grpc.StatusCode.UNAUTHENTICATED, "no")]
    reading, writing = os.pipe()
    os.close(reading)
    ended = process(peer, "trace", "a", stderr=writing)
    os.close(writing)
    assert (ended.returncode, ended.stdout) == (4, b"")


@pytest.mark.parametrize(("closed", "arguments", "status"), [(">&-", ("trace", "a"), 0), ("2>&-", ("trace",), 2)])
def test_a_closed_stream_is_no_failure(
    peer: Any, questions: Any, closed: str, arguments: tuple[str, ...], status: int
) -> None:
    peer.steps = questions["prediction"][0]
    ended = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" "$@" {closed}', *command(peer, *arguments)],
        env=environment("utf-8"),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (status, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
@pytest.mark.parametrize("arguments", [("--help",), ("trace", "a"), ("trace", "a", "--json")])
def test_a_full_disk_is_told_of(peer: Any, questions: Any, arguments: tuple[str, ...]) -> None:
    peer.steps = questions["prediction"][0]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        ended = process(peer, *arguments, stdout=full)
    assert ended.returncode == 1
    assert ended.stderr == b"sonde: cannot write the output: No space left on device\n"
