"""A reader who does what a page says, from top to bottom: its Python in one namespace, its commands in one folder."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import trustme
from sonde._connection.addresses import DEFAULT_PORT

from tests.documentation.pages import ROOT, SHELL, Block, Command, blocks, commands, name, same

SECONDS: Final = 120.0
_PORT: Final = re.compile(r"(?<=port[ =])\d{4,5}\b")
# The pages show how a server is reached from elsewhere; here it stays on this machine.
_WILDCARD: Final = "0.0.0.0"  # noqa: S104 - to be replaced


class Reader:
    """Reads one page in a folder of its own. `address` is the server that the pages take to be there already."""

    def __init__(self, page: Path, address: str, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._blocks = blocks(page)
        self._shared: dict[str, Any] = {"__name__": name(page)}
        self._servers: list[tuple[str, subprocess.Popen[str]]] = []
        self._ports = {str(DEFAULT_PORT): address.rpartition(":")[2]}
        for block in self._blocks:
            if block.language in SHELL:
                for port in _PORT.findall(block.code):
                    self._ports.setdefault(port, str(_free_port()))
        # What the commands name lies beside them, as in a checkout.
        for shown in ("examples", "proto", "tests"):
            (folder / shown).symlink_to(ROOT / shown)
        if any("server.pem" in block.code for block in self._blocks):
            _make_certificate(folder)

    def read(self) -> None:
        """Does everything that the page says, and compares what comes of it."""
        for block in self._blocks:
            if block.why_not is not None:
                continue
            if block.language == "python":
                self._python(block)
            elif block.language in SHELL:
                for command in commands(block):
                    if command.why_not is None:
                        self._command(command)

    # ------------------------------------------------------------------ Python

    def _python(self, block: Block) -> None:
        # Blank lines in front make a traceback's line numbers those of the page.
        source = "\n" * (block.line - 1) + self._here(block.code)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(self._page), "exec"), self._shared)  # noqa: S102 - our own pages
        self._compare(block.where, block.output, printed.getvalue())

    # ------------------------------------------------------------------ commands

    def _command(self, command: Command) -> None:
        if command.words[0] == "sonde-server" and command.words[1:2] != ["token"]:
            self._serve(command)
            return
        text = self._here(command.text).removesuffix("&")
        ran = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"{command.where}: {text}\n{ran.stdout}{ran.stderr}"
        assert ran.stdout.strip() or ">" in text, f"{command.where}: {text} printed nothing"
        self._compare(command.where, command.output, ran.stdout)

    def _serve(self, command: Command) -> None:
        """Starts a server that goes on until the page ends, and waits until it answers."""
        words = [self._here(word) for word in command.words if word != "&"]
        # The port that is shown may be that of the server that is there already.
        words = ["0" if word == self._ports[str(DEFAULT_PORT)] else word for word in words]
        log = self._folder / f"server-{len(self._servers)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                words, cwd=self._folder, env=self._environment() | {"SONDE_PORT": "0"}, stderr=file, text=True
            )
        self._servers.append((command.where, process))
        end = time.monotonic() + SECONDS
        while not re.search(r"serving", log.read_text(), re.IGNORECASE):
            assert process.poll() is None, f"{command.where}: {command.text}\n{log.read_text()}"
            assert time.monotonic() < end, f"{command.where}: it does not serve\n{log.read_text()}"
            time.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        own = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self._folder),
            "SONDE_ADDRESS": f"localhost:{self._ports[str(DEFAULT_PORT)]}",
            "OMP_NUM_THREADS": "1",
        }
        return os.environ | own

    # ------------------------------------------------------------------ both

    def _here(self, code: str) -> str:
        """Code with the ports that are free here in place of those that are shown."""
        shown = re.compile(rf"\b({'|'.join(self._ports)})\b")
        return shown.sub(lambda found: self._ports[found[0]], code).replace(_WILDCARD, "127.0.0.1")

    def _compare(self, where: str, shown: str | None, printed: str) -> None:
        for port, here in self._ports.items():
            printed = re.sub(rf"\b{here}\b", port, printed)
        if shown is not None:
            assert same(shown, printed), f"{where} shows\n{shown}\nand prints\n{printed}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, process in self._servers:
            process.send_signal(signal.SIGTERM)
        for where, process in self._servers:
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            assert status == 0, f"{where}: the server ended with {status}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _make_certificate(folder: Path) -> None:
    """What the pages call server.pem and server.key, and ca.pem that vouches for them."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "server.key")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
