"""Spreads a model that does not fit on one device over several GPUs, the CPU's memory and the disk, with accelerate."""

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

# Placements that accelerate works out.
BY_ITSELF = ("auto", "balanced", "sequential")

DeviceMap = str | dict[str, Any]


def read_device_map(given: str) -> DeviceMap:
    """The value of --device-map: the name of a placement, or a JSON file that gives modules their devices.

    Raises:
        UnsupportedModel: for anything else.
    """
    if given in BY_ITSELF:
        return given
    try:
        spread = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(BY_ITSELF)
        raise UnsupportedModel(f"--device-map: expected {known} or a JSON file, got {given!r}: {error}") from error
    if not isinstance(spread, dict) or not all(isinstance(place, str | int) for place in spread.values()):
        raise UnsupportedModel(f"--device-map: expected a JSON object of module names and devices in {given!r}")
    return spread


class Folder:
    """A temporary folder for weights that are kept on disk in another type than the checkpoint's."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self.path = tempfile.mkdtemp(prefix="sonde-")
        self._undo.callback(shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder, unless it belongs to a model."""
        self._undo.close()

    def belongs_to(self, model: PreTrainedModel) -> None:
        """Keeps the folder until the model is deleted."""
        weakref.finalize(model, self._undo.pop_all().close)


@contextmanager
def offload_folder() -> Iterator[Folder]:
    """A folder that is removed at the end, unless it was given to a model."""
    folder = Folder()
    try:
        yield folder
    finally:
        folder.close()


def check_tied(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel if embedding and unembedding share a weight but are placed on different devices."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    names = {module: name for name, module in model.named_modules()}
    tied = [names[module] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    first, second = (_place_of(name, _spread(model)) for name in tied)
    if first != second:
        raise UnsupportedModel(
            f"--device-map: {tied[0]} is on {first} and {tied[1]} on {second}, "
            "but they share one weight; expected the same device for both"
        )


def _place_of(name: str, spread: dict[str, Any]) -> Any:
    """The device of a module in a map: its own entry, or that of the closest module that contains it."""
    while name not in spread and name:
        name = name.rpartition(".")[0]
    return spread.get(name)


def _spread(model: PreTrainedModel) -> dict[str, Any]:
    """The device of each module. A model that is on one device has no map."""
    spread: dict[str, Any] | None = getattr(model, "hf_device_map", None)
    return spread or {"": str(model.device)}


def places(model: PreTrainedModel) -> str:
    """The devices of a spread model, such as "cuda:0, cpu, disk"."""
    names = (f"cuda:{where}" if isinstance(where, int) else str(where) for where in _spread(model).values())
    return ", ".join(dict.fromkeys(names))
