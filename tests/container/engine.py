"""podman or docker, as the tests ask them, with storage that is removed afterwards."""

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .host import CannotBuild, base_archive, pip_configuration

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/sonde:test"
BUILD_SECONDS = 570.0
PULL_SECONDS = 120.0
COMMAND_SECONDS = 60.0


class CannotRun(Exception):
    """There is nothing here that runs containers; the message says what was found."""


@dataclass(frozen=True)
class Engine:
    """One program that builds and runs."""

    program: str
    directory: Path
    """For what it is configured with, and what it writes."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_podman(self) -> bool:
        return self.program == "podman"

    def call(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> "subprocess.CompletedProcess[str]":
        """Asks it, however that ends."""
        return subprocess.run(
            [self.program, *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def tell(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """What it prints. Fails with all that it said where it does not end well."""
        done = self.call(*arguments, seconds=seconds)
        what = f"{self.program} {' '.join(arguments)} ended with {done.returncode}"
        assert done.returncode == 0, f"{what}:\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        return done.stdout.strip()

    # ------------------------------------------------------------ images

    def prepare(self) -> None:
        """Sees to it that the base image is there, and that it can be built on and run.

        Raises CannotBuild, and CannotRun where this machine does not let containers be: what is built then is not ours.
        """
        base = base_name()
        self._have(base)
        trial = self.directory / "trial"
        trial.mkdir(exist_ok=True)
        (trial / "Dockerfile").write_text(f"FROM {base}\nRUN true\n", encoding="utf-8")
        for arguments in (
            self._build("localhost/sonde:trial", trial),
            ["run", "--rm", "--network", "host", base, "true"],
        ):
            done = self.call(*arguments, seconds=PULL_SECONDS)
            if done.returncode != 0:
                said = " ".join(done.stderr.strip().splitlines()[-1:])
                raise CannotRun(f"{self.program} cannot {arguments[0]} anything here: {said}")

    def build(self) -> str:
        """Builds the image as the Dockerfile says, from this checkout, and returns its name."""
        arguments = self._build(IMAGE, ROOT)
        if given := os.environ.get("PIP_INDEX_ARGS"):
            arguments += ["--build-arg", f"PIP_INDEX_ARGS={given}"]
        if self.is_podman:
            arguments += self._mounts()
        self.tell(*arguments, seconds=BUILD_SECONDS)
        return IMAGE

    def _build(self, tag: str, directory: Path) -> list[str]:
        arguments = ["build", "--tag", tag, "--file", str(directory / "Dockerfile"), str(directory)]
        if self.is_podman:
            # podman's own image format has no health check. Building needs no privileges, so it takes none.
            arguments += ["--format", "docker", "--isolation", "chroot", "--pull=never", "--layers"]
        return arguments

    def _have(self, base: str) -> None:
        """Keeps, pulls, or makes the base image, of Debian's own packages under its name."""
        if self.call("image", "inspect", base).returncode == 0:
            return
        pulled = self.call("pull", "--quiet", base, seconds=PULL_SECONDS)
        if pulled.returncode == 0:
            return
        try:
            archive = base_archive()
        except CannotBuild as error:
            raise CannotBuild(f"{base} cannot be pulled ({pulled.stderr.strip().splitlines()[-1]}), {error}") from error
        done = self.call("import", "--change", 'CMD ["python3"]', str(archive), base, seconds=PULL_SECONDS)
        if done.returncode != 0:
            raise CannotBuild(f"{self.program} cannot import {archive}: {done.stderr.strip()}")

    def _mounts(self) -> list[str]:
        """pip's configuration and what it names, for the time of the build; nothing of it stays in the image."""
        configuration = pip_configuration()
        file = self.directory / "pip.conf"
        file.write_text(configuration.text, encoding="utf-8")
        pairs = [(file, Path("/etc/pip.conf")), *((path, path) for path in configuration.paths)]
        return [part for outside, inside in pairs for part in ("--volume", f"{outside}:{inside}:ro")]

    # ------------------------------------------------------------ containers

    def start(self, *arguments: str) -> str:
        """Runs a container as the README says it is run, with these options, image and command; returns its id."""
        hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"]  # noqa: S108
        if self.is_podman:
            # Or it makes more than that writable.
            hardened.append("--read-only-tmpfs=false")
        return self.tell("run", "--detach", *hardened, *arguments).splitlines()[-1]

    def inside(self, container: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a command in a container, however that ends."""
        return self.call("exec", container, *command)

    def exit_code(self, container: str) -> int:
        """How it ended; waits for the end."""
        return int(self.tell("wait", container))

    def logs(self, container: str) -> str:
        done = self.call("logs", container)
        return done.stdout + done.stderr


def base_name() -> str:
    """What the Dockerfile builds on, with the name of its registry."""
    found = re.search(r"^FROM (\S+:\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return f"docker.io/library/{found[1]}"


@contextmanager
def engine() -> Iterator[Engine]:
    """The first that works here. Raises CannotRun.

    podman's images lie in a temporary folder that is removed in the end; with CONTAINER_STORAGE they lie in that one,
    and are kept, so that the next build has only to do what has changed.
    """
    kept = os.environ.get("CONTAINER_STORAGE")
    # /tmp is often memory.
    directory = Path(kept or tempfile.mkdtemp(prefix="sonde-", dir=os.environ.get("TMPDIR", "/var/tmp"))).absolute()  # noqa: S108
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield _podman(directory) if shutil.which("podman") else _docker(directory)
    finally:
        _unmount(directory)
        if kept is None:
            shutil.rmtree(directory)


def _podman(directory: Path) -> Engine:
    reasons = []
    for driver in ("overlay", "vfs"):
        found = Engine("podman", directory, _configure(directory, driver))
        known = found.call("info")
        if known.returncode == 0:
            return found
        reasons += known.stderr.strip().splitlines()[-1:]
    raise CannotRun("podman does not work here: " + "; ".join(reasons))


def _docker(directory: Path) -> Engine:
    if shutil.which("docker") is None:
        raise CannotRun("neither podman nor docker is installed")
    found = Engine("docker", directory)
    if found.call("info").returncode != 0:
        raise CannotRun("docker is installed, but has no daemon; podman needs none")
    return found


def _configure(directory: Path, driver: str) -> dict[str, str]:
    """podman with storage of its own and with what works without systemd, within the limits of this process."""
    storage, containers, temporary = (directory / name for name in ("storage.conf", "containers.conf", "tmp"))
    temporary.mkdir(exist_ok=True)
    storage.write_text(
        f'[storage]\ndriver = "{driver}"\ngraphroot = "{directory / driver}"\nrunroot = "{directory / "run"}"\n',
        encoding="utf-8",
    )
    limits = [
        f'"{name}={most}:{most}"'
        for name, kind, wanted in (
            ("nofile", resource.RLIMIT_NOFILE, 1 << 14),
            ("nproc", resource.RLIMIT_NPROC, 1 << 12),
        )
        for hard in (resource.getrlimit(kind)[1],)
        for most in (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard),)
    ]
    # crun refuses machines with both versions of cgroups; runc does not.
    runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
    containers.write_text(
        f"[containers]\ndefault_ulimits = [{', '.join(limits)}]\n"
        f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n{runtime}',
        encoding="utf-8",
    )
    return {
        "CONTAINERS_STORAGE_CONF": str(storage),
        "CONTAINERS_CONF": str(containers),
        "TMPDIR": str(temporary),
    }


def _unmount(directory: Path) -> None:
    """podman leaves its store mounted on itself."""
    mounted = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for path in sorted((path for path in mounted if Path(path).is_relative_to(directory)), reverse=True):
        subprocess.run(["umount", path], check=True)
