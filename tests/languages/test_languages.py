"""The examples in other languages build from a clean checkout, and are held to the same bytes and numbers."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from tests.golden.vectors import assert_json, assert_printed
from tests.languages.conftest import Workshop, need
from tests.languages.told import assert_facts, assert_tour

pytestmark = [pytest.mark.languages, pytest.mark.timeout(900)]

Program = Callable[[str, str], list[str]]
"""The command of a part, "tour" or "golden", at an address."""


def typescript(workshop: Workshop) -> Program:
    need("node", "npm")
    workshop.build(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"])
    workshop.build(["npm", "run", "build"])
    return lambda part, address: ["npm", "run", "--silent", part, "--", address]


def go(workshop: Workshop) -> Program:
    need("make", "go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    need("/usr/share/gocode/src/google.golang.org/grpc", "/usr/share/gocode/src/google.golang.org/genproto")
    workshop.build(["make"])
    return lambda part, address: ["build/sonde-example", address, part]


def cpp(workshop: Workshop) -> Program:
    need("make", "g++", "pkg-config", "protoc", "grpc_cpp_plugin")
    # The package that the Makefile would fetch is one that Sonde itself depends on.
    workshop.build(["make", "--jobs=2", "CXXFLAGS=-O0", f"GOOGLEAPIS={Path(error_details_pb2.__file__).parents[2]}"])
    return lambda part, address: ["build/sonde-example", address, part]


LANGUAGES: dict[str, Callable[[Workshop], Program]] = {"typescript": typescript, "go": go, "cpp": cpp}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_builds_and_tells_the_same(language: str, address: str, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, language)
    program = LANGUAGES[language](workshop)
    told = workshop.run(program("tour", address))
    assert_tour(told)
    assert_facts(told, address)
    assert_printed(workshop.run(program("golden", address)))


def test_a_shell_asks_through_reflection(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # buf is installed beside the tests' Python.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    need("bash", "buf", "jq")
    workshop = Workshop(tmp_path, "shell")
    assert_tour(workshop.run(["./ask.sh", address]))
    assert_json(workshop.run(["./ask.sh", address, "golden"]))
