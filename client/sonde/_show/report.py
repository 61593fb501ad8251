"""Results as JSON, for programs that read the output of the shell command."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

import numpy as np

from sonde._show.display import Ranked

_LEFT_OUT: Final = ("_texts", "request")
"""Fields for programs in Python alone. Who runs the shell command knows what it asks."""


def as_json(result: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON without its empty fields; arrays become nested lists, NaN and infinity null."""
    return {name: entry for name, entry in _fields(result).items() if entry not in (None, [], {})}


def _fields(value: Any) -> dict[str, Any]:
    plain = {f.name.removeprefix("_"): _plain(getattr(value, f.name)) for f in fields(value) if f.name not in _LEFT_OUT}
    if isinstance(value, Ranked):
        plain["probability"] = value.probability
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
