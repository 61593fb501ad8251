"""What building an image takes from this machine: pip's own configuration, and Debian where no registry is reached."""

import ast
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
"""The release of Debian that has the Python of the Dockerfile's base image, 3.11."""
PACKAGES = "ca-certificates,python3,python3-pip"
KEPT_SECONDS = 30 * 24 * 3600.0
DEBOOTSTRAP_SECONDS = 400.0
PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "constraint", "trusted-host", "cert", "proxy", "timeout")
"""Those that say where packages come from, and how they are reached."""


class CannotBuild(Exception):
    """This machine lacks something that the image is built with; the message says what."""


@dataclass(frozen=True)
class PipConfiguration:
    """pip's configuration on this machine, and the files and folders of this machine that it names."""

    text: str
    paths: tuple[Path, ...]


def pip_configuration() -> PipConfiguration:
    """As `pip config list` tells it: files first, then the environment, which goes before them."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, tuple[bool, str]] = {}
    for line in told.splitlines():
        name, _, value = line.partition("=")
        origin, _, option = name.rpartition(".")
        by_environment = origin == ":env:"
        if option in PIP_OPTIONS and (by_environment or not found.get(option, (False, ""))[0]):
            found[option] = (by_environment, ast.literal_eval(value))
    lines = [f"{option} = {' '.join(value.split())}" for option, (_, value) in found.items()]
    words = [word for _, value in found.values() for word in value.split()]
    return PipConfiguration("\n".join(["[global]", *lines, ""]), tuple(sorted({*_paths(words)})))


def _paths(words: list[str]) -> list[Path]:
    paths = []
    for word in words:
        # A local index keeps its files beside it.
        path = Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
        if path.is_absolute() and path.exists():
            paths.append(path)
    return paths


def base_archive() -> Path:
    """A tar archive that stands in for the base image, made by debootstrap; kept for a month. Raises CannotBuild."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sonde"
    archive = cache / f"container-base-{SUITE}.tar"
    if archive.exists() and time.time() - archive.stat().st_mtime < KEPT_SECONDS:
        return archive
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise CannotBuild("and to make one, debootstrap is needed, and root")
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / f"container-base-{os.getpid()}"
    unfinished = root.with_suffix(".tar")
    try:
        _debootstrap(root)
        subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", unfinished, "."], check=True)
        unfinished.rename(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        unfinished.unlink(missing_ok=True)
    return archive


def _debootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), debian_mirror()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEBOOTSTRAP_SECONDS, check=False)
    if done.returncode != 0:
        raise CannotBuild(f"and debootstrap failed: {' '.join(done.stdout.splitlines()[-2:])} {done.stderr}")
    for packages in (root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
        for file in packages.iterdir():
            if file.is_file():
                file.unlink()
    # As the base image has it: /usr/local/bin/python, whose pip installs.
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")


def debian_mirror() -> str:
    """The one that this machine's apt is configured with. Raises CannotBuild."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in told.splitlines():
        origin, component, address = line.rsplit(" ", 2)
        if (origin, component) == ("Debian", "main") and "security" not in address:
            return address
    raise CannotBuild("and apt knows no mirror of Debian; `apt-get update` may help")
