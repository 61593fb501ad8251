"""Spreading a model that one device does not hold, by accelerate: over several GPUs, the CPU's memory and the disk."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..errors import UnsupportedModel

# How accelerate spreads a model by itself.
BY_ITSELF = ("auto", "balanced", "sequential")

DeviceMap = str | dict[str, Any]


def read_device_map(given: str) -> DeviceMap:
    """A way of spreading, or what a JSON file says of each module. Raises UnsupportedModel for what is neither."""
    if given in BY_ITSELF:
        return given
    try:
        spread = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(BY_ITSELF)
        raise UnsupportedModel(f"--device-map: {given!r} is none of {known}, nor a JSON file: {error}") from error
    if not isinstance(spread, dict) or not all(isinstance(place, str | int) for place in spread.values()):
        raise UnsupportedModel(f"--device-map: {given!r} does not give each module's name a device")
    return spread


class Folder:
    """Where weights are written that lie on disk in another type than the checkpoint's."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self.path = tempfile.mkdtemp(prefix="sonde-")
        self._undo.callback(shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Removes it, unless a model has it."""
        self._undo.close()

    def belongs_to(self, model: PreTrainedModel) -> None:
        """It is removed with the model."""
        weakref.finalize(model, self._undo.pop_all().close)


@contextmanager
def offload_folder() -> Iterator[Folder]:
    """A folder that is gone at the end, unless a model has got it."""
    folder = Folder()
    try:
        yield folder
    finally:
        folder.close()


def check_tied(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel where an unembedding that is the embedding's own weight is to lie elsewhere."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    names = {module: name for name, module in model.named_modules()}
    tied = [names[module] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    first, second = (_place_of(name, _spread(model)) for name in tied)
    if first != second:
        raise UnsupportedModel(
            f"--device-map: {tied[0]} is on {first} and {tied[1]} on {second}, "
            "but they have one weight; give both one device"
        )


def _place_of(name: str, spread: dict[str, Any]) -> Any:
    """What a map says of a module: of itself, or of the nearest around it."""
    while name not in spread and name:
        name = name.rpartition(".")[0]
    return spread.get(name)


def _spread(model: PreTrainedModel) -> dict[str, Any]:
    """Where each module went; a model that went to one device as a whole has no map."""
    spread: dict[str, Any] | None = getattr(model, "hf_device_map", None)
    return spread or {"": str(model.device)}


def places(model: PreTrainedModel) -> str:
    """The devices that a spread model lies on."""
    names = (f"cuda:{where}" if isinstance(where, int) else str(where) for where in _spread(model).values())
    return ", ".join(dict.fromkeys(names))
