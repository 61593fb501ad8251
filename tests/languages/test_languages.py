"""The examples in other languages build from a clean checkout, and are held to the same bytes and numbers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.vectors import assert_printed
from tests.languages.conftest import Workshop, need
from tests.languages.told import assert_tour

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Program = Callable[[str], list[str]]
"""The command of "tour" or of "golden"."""


def typescript(workshop: Workshop) -> Program:
    need("node", "npm")
    workshop.build(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"])
    workshop.build(["npm", "run", "build"])
    return lambda name: ["npm", "run", "--silent", name, "--"]


LANGUAGES: dict[str, Callable[[Workshop], Program]] = {"typescript": typescript}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_builds_and_tells_the_same(language: str, address: str, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, language)
    program = LANGUAGES[language](workshop)
    assert_tour(workshop.run([*program("tour"), address]))
    assert_printed(workshop.run([*program("golden"), address]))
