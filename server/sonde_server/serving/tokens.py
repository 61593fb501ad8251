"""Bearer tokens: a file that names who has one, without holding any.

A line is a name and the SHA-256 of a token in hexadecimal; empty lines and those that begin with # are skipped. A
name may have several lines, so that a token can be replaced without a gap. Tokens are random and long, so a plain
hash does not give them away.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "sonde_"
"""What tokens begin with, so that scanners for leaked secrets can know one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TokenFileError(ValueError):
    """The file of tokens cannot be used; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    digest: bytes


class Tokens:
    """Who may call, by the hash of what they present."""

    def __init__(self, path: str | Path) -> None:
        """Raises TokenFileError."""
        self._path = Path(path)
        self._entries = _read(self._path)

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> None:
        """Reads the file again. Raises TokenFileError, and keeps what it had then."""
        self._entries = _read(self._path)

    def name_of(self, token: str) -> str | None:
        """Whose token it is; None: nobody's. Takes as long for every token: each entry is compared in full."""
        digest = _digest(token).encode()
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, digest):
                found = entry.name
        return found


def make_token(name: str) -> tuple[str, str]:
    """A new token of 256 random bits, and the line that lets it in. Raises TokenFileError for an unusable name."""
    _check_name(name, "")
    token = PREFIX + secrets.token_urlsafe(32)
    return token, f"{name} {_digest(token)}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> tuple[_Entry, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"{path} cannot be read: {error}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"{path}, line {number}: "
        # What is wrong is not shown: it may be a token that was put there in place of its hash.
        if len(parts) != 2 or not _DIGEST.fullmatch(parts[1].lower()):
            raise TokenFileError(f"{where}it is not a name and a SHA-256 in 64 hexadecimal digits")
        _check_name(parts[0], where)
        entries.append(_Entry(parts[0], parts[1].lower().encode()))
    if not entries:
        raise TokenFileError(f"{path} names nobody; add a line that `sonde-server token NAME` makes")
    return tuple(entries)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise TokenFileError(f"{where}a name has 1 to 64 letters, digits or ._@- and begins with a letter or digit")
