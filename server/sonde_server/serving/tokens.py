"""Bearer tokens, checked against a file of their hashes.

Each line is a name and the SHA-256 of a token in hexadecimal; empty lines and lines that begin with # are skipped. A
name may have several lines, so that a token can be replaced without an interruption. Tokens are long and random, so a
plain hash is safe.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sonde_"
"""Every token begins with this, so that scanners for leaked secrets recognise it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TokenFileError(ValueError):
    """The token file is invalid; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    digest: bytes


class Tokens:
    """The tokens that are accepted, and their owners."""

    def __init__(self, path: str | Path) -> None:
        """Raises TokenFileError."""
        self._path = Path(path)
        self._entries = _read(self._path)

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> None:
        """Read the file again. Raises TokenFileError, and then keeps the previous tokens."""
        self._entries = _read(self._path)

    def name_of(self, token: str) -> str | None:
        """The owner of a token, or None. Every entry is compared in full, so the time does not depend on the token."""
        digest = _digest(token).encode()
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, digest):
                found = entry.name
        return found


def make_token(name: str) -> tuple[str, str]:
    """Make a token of 256 random bits, and its line for the file. Raises TokenFileError for an invalid name."""
    _check_name(name, "")
    token = PREFIX + secrets.token_urlsafe(32)
    return token, f"{name} {_digest(token)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> tuple[_Entry, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"cannot read {path}: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"{path}, line {number}: "
        # The line is not shown: somebody may have put the token there instead of its hash.
        if len(parts) != 2 or not _DIGEST.fullmatch(parts[1].lower()):
            raise TokenFileError(f"{where}expected a name and a SHA-256 of 64 hexadecimal digits")
        _check_name(parts[0], where)
        entries.append(_Entry(parts[0], parts[1].lower().encode()))
    if not entries:
        raise TokenFileError(f"{path} has no tokens; add a line made by `sonde-server token NAME`")
    return tuple(entries)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise TokenFileError(
            f"{where}expected a name of 1 to 64 letters, digits or ._@- that begins with a letter or digit"
        )
