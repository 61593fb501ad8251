"""Images of prompts: files, bytes, pictures of Pillow and arrays, all as the bytes of a file."""

import io
import os
import struct
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sonde._ask.given import array, refusal

SPAN: Final = "image"
"""The span that the image of a prompt is."""
_EXPECTED: Final = (
    "the bytes or the path of a PNG or JPEG, a picture of Pillow, or an array [rows, columns] or [rows, columns, 3] of "
    "uint8"
)
_HEADER: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2}
"""PNG's numbers for grey and for RGB, by how many channels there are."""


class Picture(Protocol):
    """A picture of Pillow."""

    @property
    @abstractmethod
    def mode(self) -> str:
        """How its pixels are stored."""

    @abstractmethod
    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002 - Pillow's own word
        """Write it to a file."""


ImageLike: TypeAlias = bytes | str | Path | Picture | npt.NDArray[np.uint8]
"""The bytes or the path of a PNG or JPEG, a picture of Pillow, or an array of uint8."""


def as_image(given: Any) -> bytes | None:
    """Return the bytes of a PNG or JPEG. Files are sent as they are; the server checks them.

    Raises:
        InvalidRequest: for what is no image.
        OSError: if a file cannot be read.
    """
    if given is None:
        return None
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, str | os.PathLike):
        return Path(given).read_bytes()
    if hasattr(given, "mode") and hasattr(given, "save"):
        stream = io.BytesIO()
        given.save(stream, "PNG")
        return stream.getvalue()
    if not hasattr(given, "shape"):
        raise refusal("image", _EXPECTED, given)
    return _png(array(given, "image", _EXPECTED))


def _png(pixels: npt.NDArray[Any]) -> bytes:
    """A PNG of these pixels, which is small enough to be written by hand (RFC 2083)."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in _COLOUR_TYPES or pixels.dtype != np.uint8 or not pixels.size:
        raise refusal("image", _EXPECTED, pixels)
    rows, columns = pixels.shape[:2]
    # Each row begins with the number of its filter: none.
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b"")
    return _HEADER + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
