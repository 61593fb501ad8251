"""Where a model comes from: a directory, the hub or a GGUF file, each with what transformers is asked of it."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..builtin import ATLAS_DIRECTORY
from ..errors import UnsupportedModel
from .configuration import read_configuration
from .gguf_file import GgufFile, is_gguf, read_gguf
from .gguf_tokenizer import read_tokenizer

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT = (
    'to convert a checkpoint that you trust: python -c "from transformers import AutoModelForCausalLM as Model, '
    "AutoTokenizer as Tokenizer; [kind.from_pretrained('OLD').save_pretrained('NEW') for kind in (Model, Tokenizer)]\""
)


class Checkpoint(Protocol):
    """What a model is loaded from."""

    @property
    def source(self) -> str:
        """What error messages call it."""

    @property
    def public_name(self) -> str:
        """What callers are told: of a file or directory only its own name, since its path is nobody else's concern."""

    def configuration(self) -> PreTrainedConfig:
        """The model's configuration. Raises UnsupportedModel for what is not hosted."""

    def dtype(self, config: PreTrainedConfig) -> torch.dtype | None:
        """The data type of its weights, where it is known."""

    def read(self, read: Callable[..., Any], **options: Any) -> Any:
        """What a `from_pretrained` makes of it. No code of it is run, and no pickle is read."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises UnsupportedModel or OSError if there is none that can be read."""

    def image_processor(self) -> Any:
        """What prepares images for it. Raises UnsupportedModel, ImportError or OSError if there is none to be read."""

    def check(self, model: PreTrainedModel) -> None:
        """Raises UnsupportedModel if the model that was read lacks a part of the checkpoint."""

    def revision(self, config: PreTrainedConfig) -> str:
        """What tells its weights from those of others."""


def find(name: str, revision: str | None) -> Checkpoint:
    """The checkpoint that a name means. Raises UnsupportedModel for a GGUF file that is not hosted."""
    if not is_gguf(name):
        return Transformers(name, revision)
    if revision is not None:
        raise UnsupportedModel(f"--revision: expected none, because {name!r} is a file, got {revision!r}")
    return Gguf(name, read_gguf(name))


@dataclass(frozen=True, slots=True)
class Transformers:
    """A checkpoint in the form of transformers: the embedded model, a directory, or a model of the hub."""

    name: str
    asked: str | None

    @property
    def source(self) -> str:
        """A directory, or a hub id."""
        return str(ATLAS_DIRECTORY) if self.name == "atlas" else self.name

    @property
    def public_name(self) -> str:
        """The hub id, or the directory's own name."""
        return Path(self.name).resolve().name if self.name != "atlas" and Path(self.name).is_dir() else self.name

    def configuration(self) -> PreTrainedConfig:
        """What config.json says."""
        config = read_configuration(self.source, self.asked)
        _refuse_pickles(self.source)
        return config

    def dtype(self, config: PreTrainedConfig) -> torch.dtype | None:
        """What the configuration says."""
        dtype = getattr(config, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) else None

    def read(self, read: Callable[..., Any], **options: Any) -> Any:
        """From safetensors."""
        return read(self.source, revision=self.asked, trust_remote_code=False, **options)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """From whichever files transformers reads tokenizers from."""
        tokenizer: PreTrainedTokenizerBase = self.read(AutoTokenizer.from_pretrained)
        return tokenizer

    def image_processor(self) -> Any:
        """From preprocessor_config.json or processor_config.json. Pillow resizes images, also beside torchvision."""
        return self.read(AutoImageProcessor.from_pretrained, backend="pil")

    def check(self, model: PreTrainedModel) -> None:
        """Nothing is left out: a safetensors file may hold more than the model."""

    def revision(self, config: PreTrainedConfig) -> str:
        """What was asked for, the commit of the hub, or a hash of the weights."""
        found = self.asked or getattr(config, "_commit_hash", None)
        return found or _fingerprint(sorted(Path(self.source).glob("*.safetensors")))


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file, which transformers dequantises."""

    source: str
    file: GgufFile

    @property
    def public_name(self) -> str:
        """The file's own name."""
        return self.file.path.name

    def configuration(self) -> PreTrainedConfig:
        """What the file says of its model."""
        return self.file.configuration()

    def dtype(self, config: PreTrainedConfig) -> torch.dtype | None:  # noqa: ARG002 - the file says it
        """That of the matrices; float32 where they are quantised."""
        return self.file.dtype

    def read(self, read: Callable[..., Any], **options: Any) -> Any:
        """From this file alone."""
        return self.file.read(read, trust_remote_code=False, **options)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The file's."""
        return read_tokenizer(self.file)

    def image_processor(self) -> Any:
        """None: such a file holds the language model alone."""
        raise UnsupportedModel("a GGUF file has no image processor")

    def check(self, model: PreTrainedModel) -> None:
        """Every tensor of the file has become a weight."""
        self.file.check_weights(model)
        # From here on this is a model like any other, whose weights happen to have few different values.
        del model.config.quantization_config

    def revision(self, config: PreTrainedConfig) -> str:  # noqa: ARG002 - the file says it
        """A hash of the file, and how its weights were quantised."""
        return f"{_fingerprint([self.file.path])} ({' '.join(filter(None, ('GGUF', self.file.quantisation)))})"


def _refuse_pickles(source: str) -> None:
    """Refuses a directory whose weights are pickles, which can run code when they are read."""
    directory = Path(source)
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"expected safetensors in {source!r}, got pickles ({pickles[0]}), which can run code when they are read; "
            f"{CONVERT}"
        )


def _fingerprint(files: Iterable[Path]) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
    return "sha256:" + digest.hexdigest()[:16]
