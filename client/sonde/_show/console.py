"""Output to consoles that cannot show every character, and to files and pipes that cannot take it."""

import codecs
import io
import os
import sys
from typing import Final, TextIO

_PLAIN: Final = {
    **dict.fromkeys("█▉", "#"),
    **dict.fromkeys("▊▋▌", "+"),
    **dict.fromkeys("▍▎▏", "."),
    "░": ".",
    "─": "-",
    "·": ".",
}
"""What bars and rules become where there is only ASCII; each stays as wide as it was."""
_HANDLER: Final = "sonde.plain"


class Unwritable(Exception):
    """The output could not be written, though its reader is there."""


def prepare() -> None:
    """Let no character and no missing stream end the program: standard output and error degrade instead."""
    codecs.register_error(_HANDLER, _degrade)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # As when the shell has closed it.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - until the program ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def write(text: str) -> None:
    """Write to standard output, at once.

    Raises:
        BrokenPipeError: if its reader is gone.
        Unwritable: if it cannot be written for another reason, such as a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise Unwritable(f"cannot write the output: {error.strerror or error}") from None


def complain(text: str) -> None:
    """Write to standard error, where anybody reads it."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Drop what a stream still holds, which the interpreter would write on exit, and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def takes_unicode(stream: TextIO) -> bool:
    """Whether a stream can show every character."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def _degrade(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters), error.end
