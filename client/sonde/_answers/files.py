"""Files with results: arrays by name, and everything else, including the provenance, as JSON.

Only classes from a list of known ones are created, and nothing in a file is ever executed, so files from any source can
be opened.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sonde._answers.captured import Captured
from sonde._arrays import BFLOAT16
from sonde._version import __version__

FORMAT: Final = 1
"""Increased whenever an older version could misread a file."""
_HEADER: Final = "sonde"
_Arrays = dict[str, npt.NDArray[Any]]


def write(result: Any, path: str | Path, words: Mapping[str, str]) -> None:
    """Write a dataclass to a file; the suffix of the path, `.npz` or `.safetensors`, chooses the format.

    Args:
        result: the dataclass.
        path: the file.
        words: metadata that other programs can read without knowing Sonde.

    Raises:
        ValueError: for any other suffix.
        ImportError: for `.safetensors` if the package is not installed.
    """
    put = _by_ending(Path(path), _write_npz, _write_safetensors)
    arrays: _Arrays = {}
    tree = _plain(result, "", arrays)
    header = {"format": FORMAT, "sonde_version": __version__, "result": tree}
    put(Path(path), arrays, {_HEADER: json.dumps(header), **words})


def read(path: str | Path, known: Mapping[str, type[Any]]) -> Any:
    """Read a file that `write` wrote: an object of the same class, with the same values.

    Args:
        path: the file.
        known: the dataclasses that the file may contain, by name.

    Raises:
        ValueError: if the file does not hold a result, or was written by a later version of Sonde.
        ImportError: for `.safetensors` if the package is not installed.
        OSError: if the file cannot be read.
    """
    get = _by_ending(Path(path), _read_npz, _read_safetensors)
    arrays, text = get(Path(path))
    try:
        header = json.loads(text)
        version, made_by = header["format"], header["sonde_version"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path}: expected a result saved by Sonde, got arrays without its description") from None
    if version != FORMAT:
        raise ValueError(f"{path}: saved by Sonde {made_by} in format {version}; this version reads format {FORMAT}")
    try:
        return _restored(header["result"], arrays, known)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: the description does not match this version of Sonde: {error}") from None


def _by_ending(path: Path, npz: Callable[..., Any], safetensors: Callable[..., Any]) -> Callable[..., Any]:
    endings = {".npz": npz, ".safetensors": safetensors}
    if path.suffix not in endings:
        raise ValueError(f"{path}: expected a name that ends in .npz or .safetensors")
    return endings[path.suffix]


# ---------------------------------------------------------------------- formats


def _write_npz(path: Path, arrays: _Arrays, texts: Mapping[str, str]) -> None:
    named: dict[str, Any] = arrays | {f"__{name}__": np.array(text) for name, text in texts.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **named)


def _read_npz(path: Path) -> tuple[_Arrays, str]:
    with path.open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files}
        except (
            ValueError,
            EOFError,
            AttributeError,
            zipfile.BadZipFile,
        ):  # A pickle, one array, or cut short.
            raise ValueError(f"{path}: not a file of several arrays that numpy wrote") from None
    header = arrays.pop(f"__{_HEADER}__", None)
    return arrays, "" if header is None else str(header)


def _write_safetensors(path: Path, arrays: _Arrays, texts: Mapping[str, str]) -> None:
    _require_safetensors()
    from safetensors.numpy import save_file

    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path, dict(texts))


def _read_safetensors(path: Path) -> tuple[_Arrays, str]:
    _require_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata.get(_HEADER, "")  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from None


def _require_safetensors() -> None:
    try:
        import safetensors
    except ImportError:
        raise ImportError(".safetensors files need a package: pip install 'sonde[safetensors]'") from None
    del safetensors


# ---------------------------------------------------------------------- values


def _plain(value: Any, path: str, arrays: _Arrays) -> Any:  # noqa: PLR0911 - one per kind
    """Convert a value to what JSON can hold; put arrays into `arrays`, by their path of field names."""
    if isinstance(value, np.ndarray) and value.dtype == BFLOAT16:
        arrays[path] = value["bfloat16"]
        return {"bfloat16": path}
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Captured):
        parts = [(value.site(i), value.axes(i), value.as_sent(i)) for i in value]
        return {
            "captured": [
                [_plain(part, _join(path, i, j), arrays) for j, part in enumerate(p)] for i, p in enumerate(parts)
            ]
        }
    if is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: _plain(getattr(value, f.name), _join(path, f.name), arrays) for f in _saved(value)}
        return {"type": type(value).__name__, "fields": entries}
    if isinstance(value, Mapping):
        return {"map": [[key, _plain(entry, _join(path, key), arrays)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(entry, _join(path, i), arrays) for i, entry in enumerate(value)]}
    assert value is None or isinstance(value, str | int | float), type(value)
    return value


def _saved(value: Any) -> Iterable[Field[Any]]:
    """The fields of a dataclass, without those that only this program can use."""
    return (field for field in fields(value) if field.metadata.get("saved", True))


def _join(path: str, *names: object) -> str:
    return ".".join([*([path] if path else []), *(str(name).removeprefix("_") for name in names)])


def _restored(  # noqa: PLR0911 - one per kind
    tree: Any, arrays: Mapping[str, npt.NDArray[Any]], known: Mapping[str, type[Any]]
) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "bfloat16" in tree:
        return arrays[tree["bfloat16"]].view(BFLOAT16)
    if "array" in tree:
        return arrays[tree["array"]]
    if "map" in tree:
        return {key: _restored(entry, arrays, known) for key, entry in tree["map"]}
    if "list" in tree:
        return [_restored(entry, arrays, known) for entry in tree["list"]]
    if "tuple" in tree:
        return tuple(_restored(entry, arrays, known) for entry in tree["tuple"])
    if "captured" in tree:
        parts = [[_restored(part, arrays, known) for part in entry] for entry in tree["captured"]]
        return Captured([site for site, _, _ in parts], [(axes, array) for _, axes, array in parts])
    given = {name: _restored(entry, arrays, known) for name, entry in tree["fields"].items()}
    return _made(known[tree["type"]], given)


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    """Create an object of a known class. A field that this version lacks comes from a later version."""
    expected: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}
    if strange := sorted(set(given) - set(expected)):
        raise KeyError(f"{kind.__name__} has no {', '.join(strange)}; a later version of Sonde may have it")
    lacking = [
        name
        for name, field in expected.items()
        if name not in given and field.default is MISSING and field.default_factory is MISSING
    ]
    if lacking:
        raise KeyError(f"{kind.__name__} lacks {', '.join(lacking)}")
    return kind(**given)
