"""What the project says about itself in several places agrees."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import sonde
import yaml

ROOT = Path(__file__).parents[1]
PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS = [
    hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
]
WORKFLOW: Any = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def targets(command: str) -> set[str]:
    """What `make` is told to make."""
    return {word for word in command.split()[1:] if not word.startswith("-") and "=" not in word}


def known_targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    return set(phony.split())


def test_the_version_stands_in_one_place_and_heads_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(\S+)\] - (Unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    assert len(heads) == changelog.count("\n## ")
    assert heads[0][0] == sonde.__version__ == metadata.version("sonde")
    assert all(date != "Unreleased" for _, date in heads[1:])


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_before_a_commit_is_a_part_of_make_check(hook: dict[str, Any]) -> None:
    (parts,) = re.findall(r"^check: (.*?) ##", MAKEFILE, re.MULTILINE)
    assert hook["entry"].startswith("make ")
    assert targets(hook["entry"]) <= set(parts.split())
    # So that nothing is downloaded, and no tool has a second version.
    assert hook["language"] == "system"


def test_the_hooks_are_all_of_make_check() -> None:
    (parts,) = re.findall(r"^check: (.*?) ##", MAKEFILE, re.MULTILINE)
    assert set().union(*(targets(hook["entry"]) for hook in HOOKS)) == set(parts.split())


def test_the_workflow_runs_what_there_is() -> None:
    for command in [step["run"] for step in STEPS if "run" in step]:
        program = command.split()[0]
        assert targets(command) <= known_targets() if program == "make" else (ROOT / program).is_file()


def test_actions_are_pinned_by_commit() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)$", text, re.MULTILINE)
    assert len(used) == len([step for step in STEPS if "uses" in step])
    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_every_python_of_the_workflow_is_a_classifier() -> None:
    classifiers = metadata.metadata("sonde").get_all("Classifier") or []
    tested = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    found = {one.rpartition(" :: ")[2] for one in classifiers if one.startswith("Programming Language :: Python :: 3.")}
    assert found == set(tested)


def test_what_is_long_is_marked_by_what_is_described() -> None:
    declared = {line.partition(":")[0] for line in PYTEST["markers"]}
    (long,) = re.findall(r"^LONG := (.*)$", MAKEFILE, re.MULTILINE)
    assert set(long.split(" or ")) == declared
    _, _, table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| Mark | Tests |\n")
    assert set(re.findall(r"^\| `([a-z]+)` \|", table.partition("\n\n")[0], re.MULTILINE)) == declared


def test_every_target_says_what_it_does() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    described = {line.split()[0] for line in shown.splitlines()}
    # Steps of `check`, which are seldom made by themselves.
    assert known_targets() - described == {"format-check", "lint", "types"}
