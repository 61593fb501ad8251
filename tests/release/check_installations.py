"""The wheel at the lowest and the highest versions that it allows: it serves, it asks, and the tests pass on it."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.release.conftest import Installed

pytestmark = pytest.mark.timeout(900)

PROMPT = "The Eiffel Tower is in the city of"
LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@contextmanager
def serving(installation: Installed) -> Iterator[str]:
    """The installed command, with the embedded model; where it listens."""
    process = subprocess.Popen(
        [installation.scripts / "sonde-server", "--port", "0", "--device", "cpu"],
        cwd=installation.elsewhere,
        env=installation.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    try:
        with process.stderr:
            for line in process.stderr:
                said.append(line)
                if found := LISTENING.search(line):
                    yield found[1]
                    break
            else:
                raise AssertionError("".join(said))
            process.terminate()
            process.stderr.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_client_without_torch_asks_a_server(client_side: Installed, server_side: Installed) -> None:
    client_side.run("python", "-m", "pip", "check")
    listed = json.loads(client_side.run("python", "-m", "pip", "list", "--format=json").stdout)
    assert not {one["name"].lower() for one in listed} & {"torch", "transformers"}
    with serving(server_side) as address:
        client_side.python(f"import sonde; sonde.Client({address!r}).wait_until_serving(120)")
        arguments = ("trace", "--address", address, PROMPT, "--subject", "The Eiffel Tower", "--target", " Paris")
        answer = json.loads(client_side.run("sonde", *arguments, "--json").stdout)
        client_side.run("sonde", *arguments, "--plot", "trace.png")
    assert answer["targets"][0]["text"] == " Paris"
    assert (client_side.elsewhere / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_the_tests_of_the_client_pass(client_side: Installed) -> None:
    # Without what the tests of the server share, which is made of torch.
    client_side.test("--confcutdir=tests/client", "tests/client")


def test_the_tests_of_both_pass(server_side: Installed) -> None:
    server_side.run("python", "-m", "pip", "check")
    server_side.test(
        "tests/conformance",
        "tests/test_oracle.py",
        "tests/test_identities.py",
        "tests/test_families.py",
        "tests/test_selfcheck.py",
        "tests/test_checkpoints.py",
        "tests/test_tokenizers.py",
        "tests/test_server_observability.py",
        "tests/test_device_map.py",
    )
