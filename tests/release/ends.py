"""The two ends of the ranges that pyproject.toml declares, as constraints for pip."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.installation import ROOT

TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "pandas")
"""What the tests are run with, at both ends in the version of constraints.txt, but for pandas, which follows numpy."""


def constraints(directory: Path, end: str, extras: Iterable[str]) -> Path:
    """A file for `pip install --constraint`: "lowest" pins what is required directly, "highest" leaves pip the latest.

    torch is the version of constraints.txt at both ends. Any other would be its build for CUDA, with gigabytes of
    libraries, where the index has no builds for CPUs; so nothing here says whether its floor is right.
    """
    lines = [f"{name}=={version}" for name, version in pinned().items() if name in {"torch", *TOOLS} - {"pandas"}]
    if end == "lowest":
        lines += [f"{name}=={floor}" for name, floor in floors(extras).items() if name != "torch"]
    file = directory / f"{end}.txt"
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


def pinned() -> dict[str, str]:
    """The versions that Sonde is tested with, by name."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}


def floors(extras: Iterable[str]) -> dict[str, str]:
    """The lowest version that each requirement, of the client and of these extras, allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, str] = {}
    for line in (
        *project["dependencies"],
        *(one for extra in extras for one in project["optional-dependencies"][extra]),
    ):
        requirement = Requirement(line)
        (floor,) = [one.version for one in requirement.specifier if one.operator == ">="]
        found[canonicalize_name(requirement.name)] = floor
    return found
