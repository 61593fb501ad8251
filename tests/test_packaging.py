"""What an installation holds, measured on a built wheel in an environment of its own."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.installation import ROOT, Installation

pytestmark = [
    pytest.mark.installs,
    # An installation asks the package index, however fast that is.
    pytest.mark.timeout(600),
]

# What `pip install .` brings, and nothing else: the four requirements with what they require in turn.
CLIENT_CLOSURE = {
    "sonde",
    "grpcio",
    "grpcio-status",
    "protobuf",
    "numpy",
    "googleapis-common-protos",
    "typing-extensions",
}
SERVER_MISSING = "sonde-server needs its extra: pip install 'sonde[server]'"
CONTRACT = {path.stem for path in (ROOT / "proto/sonde/v1").iterdir()}
GENERATED = {
    *(f"{stem}{ending}" for stem in CONTRACT for ending in (".proto", "_pb2.py", "_pb2.pyi")),
    "inspection_pb2_grpc.py",
    "inspection_pb2_grpc.pyi",
    "__init__.py",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    # hatchling is installed with the tools of the tests, so nothing is downloaded for the build.
    program = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", program, str(directory)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return directory / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    installation = Installation(tmp_path_factory.mktemp("client"))
    installation.pip_install("--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return installation


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_generated_code_and_type_markers(wheel_names: set[str]) -> None:
    assert {name.rpartition("/")[2] for name in wheel_names if name.startswith("sonde/v1/")} == GENERATED
    assert {"sonde/py.typed", "sonde_server/py.typed"} <= wheel_names
    tops = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert tops == {"sonde", "sonde_server"}


def test_wheel_has_every_file_of_the_sources(wheel_names: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "client/sonde", "server/sonde_server"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {name.split("/", 1)[1] for name in tracked if (ROOT / name).exists()}
    assert expected <= wheel_names, sorted(expected - wheel_names)


def test_wheel_has_the_embedded_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    weights = [name for name in files if name.startswith("sonde_server/builtin/") and name.endswith(".safetensors")]
    assert len(weights) == 1
    folder = weights[0].rpartition("/")[0]
    assert {f"{folder}/config.json", f"{folder}/tokenizer.json"} <= files.keys()
    assert 1e6 < files[weights[0]] <= 12e6


def test_metadata_names_licence_version_and_requirements(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licences
    version: dict[str, str] = {}
    exec((ROOT / "client/sonde/_version.py").read_text(encoding="utf-8"), version)  # noqa: S102 -- our own file
    assert metadata["Version"] == version["__version__"]
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {requirement.name for requirement in requirements if requirement.marker is None} == {
        "grpcio",
        "grpcio-status",
        "protobuf",
        "numpy",
    }
    extras = {"server", "ray", "vision", "gguf", "telemetry", "plot", "safetensors", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_client_brings_four_requirements(client_only: Installation) -> None:
    listing = client_only.run("python", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check").stdout
    installed = {line.split("==")[0].lower().replace("_", "-") for line in listing.split()}
    assert installed - {"pip", "setuptools"} == CLIENT_CLOSURE
    client_only.run("python", "-m", "pip", "check")


def test_client_is_imported_without_warning_or_torch(client_only: Installation) -> None:
    program = (
        "import sys, sonde, sonde.v1.inspection_pb2_grpc; "
        "assert 'site-packages' in sonde.__file__; "
        "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & sys.modules.keys(); "
        "print(sonde.Client.__name__)"
    )
    assert client_only.run("python", "-W", "error", "-c", program).stdout == "Client\n"


CONSUMER = """\
from typing import assert_type

import sonde

def ask(client: sonde.Client) -> float:
    trace = client.trace("a", targets=[" b"], method=sonde.CausalTracing(subject="a"))
    assert_type(trace, sonde.CausalTracingResult)
    result = client.intervene("a", [sonde.scale(sonde.neuron(layer=0, unit=1), 0.0)])
    assert_type(result, sonde.InterventionResult)
    return float(trace.clean[0] + result.log_probabilities[0, 0])
"""


@pytest.mark.parametrize(("program", "code"), [(CONSUMER, 0), (CONSUMER + 'sonde.Client("a").trace(prompt_=1)\n', 1)])
def test_what_is_installed_is_typed(client_only: Installation, tmp_path: Path, program: str, code: int) -> None:
    (tmp_path / "consumer.py").write_text(program, encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache",
         "--python-executable", client_only.scripts / "python", "consumer.py"],
        cwd=tmp_path, env=dict(client_only.environment), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == code, checked.stdout + checked.stderr
    assert (code == 0) == ("Success" in checked.stdout)


def test_command_of_the_client_runs(client_only: Installation) -> None:
    result = client_only.run("sonde", "--help")
    assert {"model", "trace", "intervene"} <= set(result.stdout.replace(",", " ").replace("{", " ").split())
    assert result.stderr == ""


def test_server_without_its_extra_says_what_to_install(client_only: Installation) -> None:
    result = client_only.run("sonde-server", check=False)
    assert result.returncode not in {0, None}
    assert (result.stdout + result.stderr).strip() == SERVER_MISSING


def test_editable_installation_follows_the_sources(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "editable")
    installation.pip_install("--constraint", str(ROOT / "constraints.txt"), "--no-deps", "--editable", str(ROOT))
    found = installation.python(
        "from importlib.util import find_spec; print(*(find_spec(name).origin for name in ('sonde', 'sonde_server')))"
    )
    assert found.split() == [str(ROOT / "client/sonde/__init__.py"), str(ROOT / "server/sonde_server/__init__.py")]
