"""Loads a model from a directory or the hub: weights as safetensors only, no code from the checkpoint."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..builtin import ATLAS_DIRECTORY
from ..errors import UnsupportedModel
from ..questions.places import ModelDescription
from .anatomy import Decoder
from .families import family_of
from .kernels import fuse_activations
from .packing import pack
from .spreading import check_tied, offload_folder, places, read_device_map
from .vocabulary import Vocabulary

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    'to convert a checkpoint that you trust: python -c "from transformers import AutoModelForCausalLM as Model, '
    "AutoTokenizer as Tokenizer; [kind.from_pretrained('OLD').save_pretrained('NEW') for kind in (Model, Tokenizer)]\""
)
MOST_SHOWN = 5
"""Weights that are named where a checkpoint is not whole."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be asked: its parts, its vocabulary, and what GetModel says of it."""

    decoder: Decoder
    vocabulary: Vocabulary
    description: ModelDescription


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | None = None,
    pack_weights: bool = True,
) -> LoadedModel:
    """Loads `name`: "atlas" (the embedded model), a directory, or a hub id.

    It goes to one device, or with `device_map` to several: spread by accelerate, or as a JSON file says. With
    `pack_weights` a second copy of the weights makes products of few rows faster, on a CPU in float32. Raises
    UnsupportedModel, with what would do, for an unknown family, a checkpoint that is not safetensors or not whole, a
    name that leads nowhere, a device that is not there, or a map that does not fit.
    """
    transformers_logging.disable_progress_bar()
    source = str(ATLAS_DIRECTORY) if name == "atlas" else name
    place = _device(device)
    config = _config(source, revision)
    _refuse_pickles(source)
    options = {"revision": revision, "config": config, "dtype": _dtype(dtype, place, getattr(config, "dtype", None))}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # Before transformers 5.21 such a model takes "sdpa" by itself, which leaves the cap out.
        options["attn_implementation"] = "eager"
    try:
        if device_map is None:
            model = _pretrained(source, options)
            model.to(place)  # type: ignore[arg-type]
        else:
            model = _spread(source, options, device_map)
    except OSError as error:
        raise UnsupportedModel(f"cannot load {name!r} as safetensors: {error}; {_CONVERT}") from error
    model.eval().requires_grad_(requires_grad=False)
    fuse_activations(model)
    if pack_weights:
        pack(model)
    decoder = Decoder(model)
    vocabulary = Vocabulary(_tokenizer(source, revision), decoder.vocabulary_size)
    where = str(place) if device_map is None else places(model)
    return LoadedModel(decoder, vocabulary, _describe(name, revision, decoder, where))


def _pretrained(source: str, options: dict[str, Any]) -> PreTrainedModel:
    """Raises UnsupportedModel for a checkpoint that is not whole: transformers would draw the rest at random."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (ImportError, SafetensorError) as error:
        raise UnsupportedModel(f"cannot load {source!r}: {error}") from error
    model: PreTrainedModel
    model, told = loaded
    wrong = [f"{name} is missing" for name in sorted(told["missing_keys"])]
    for name, found, expected in sorted(told["mismatched_keys"]):
        wrong.append(f"{name} has shape {tuple(found)} instead of {tuple(expected)}")
    if wrong:
        shown = "; ".join(wrong[:MOST_SHOWN]) + (f"; and {len(wrong) - MOST_SHOWN} more" if wrong[MOST_SHOWN:] else "")
        raise UnsupportedModel(f"{source!r} is not a whole {type(model).__name__}: {shown}")
    return model


def _spread(source: str, options: dict[str, Any], device_map: str) -> PreTrainedModel:
    spread = read_device_map(device_map)
    with offload_folder() as folder:
        try:
            model = _pretrained(source, {**options, "device_map": spread, "offload_folder": folder.path})
        except ValueError as error:
            raise UnsupportedModel(f"--device-map {device_map} does not fit {source!r}: {error}") from error
        check_tied(model)
        folder.belongs_to(model)
    return model


def _config(source: str, revision: str | None) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            f"{source!r} is neither a model directory nor a hub id that can be read: {error}"
        ) from error
    except StrictDataclassError as error:
        raise UnsupportedModel(f"the configuration of {source!r} is faulty: {' '.join(str(error).split())}") from error
    family_of(config)  # refused before its weights are read
    return config


def _refuse_pickles(source: str) -> None:
    """Says what to do with a directory whose weights are pickles, which can run code when they are read."""
    directory = Path(source)
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"{source!r} has its weights as pickles ({pickles[0]}), which can run code when they are read; {_CONVERT}"
        )


def _device(device: str) -> torch.device:
    """Raises UnsupportedModel where torch has no such device here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UnsupportedModel(f"--device {device} cannot be used: {reason}; there is {', '.join(there)}") from error
    return torch.device(device)


def _dtype(dtype: str, place: torch.device, checkpoint: object) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if place.type == "cpu" or not isinstance(checkpoint, torch.dtype):
        return torch.float32
    return checkpoint


def _tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """None where there is none; the log says why."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
    else:
        # Without a file many classes make one that knows special tokens alone, and takes any text for nothing or <unk>.
        if set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
            return tokenizer
        reason = "its vocabulary is empty"
    _log.warning("%s has no tokenizer that can be read, prompts have to be token ids: %s", source, reason)
    return None


def _describe(name: str, revision: str | None, decoder: Decoder, device: str) -> ModelDescription:
    config = decoder.model.config
    return ModelDescription(
        name=_public_name(name),
        revision=revision or getattr(config, "_commit_hash", None) or _fingerprint(name),
        architecture=str(config.model_type),
        data_type=str(decoder.dtype).removeprefix("torch."),
        device=device,
        attention=decoder.attention,
        layers=decoder.layers,
        hidden_size=decoder.hidden_size,
        heads=decoder.heads,
        key_value_heads=decoder.key_value_heads,
        head_size=decoder.head_size,
        neurons=decoder.neurons,
        vocabulary_size=decoder.vocabulary_size,
        max_positions=decoder.max_positions,
        parameters=sum(parameter.numel() for parameter in decoder.model.parameters()),
        unavailable=dict(decoder.unavailable),
    )


def _public_name(name: str) -> str:
    """What callers are told: of a directory only its own name, since its path is nobody else's concern."""
    return Path(name).resolve().name if name != "atlas" and Path(name).is_dir() else name


def _fingerprint(name: str) -> str:
    """What stands for a revision where the checkpoint is a directory: a hash of its weights."""
    directory = ATLAS_DIRECTORY if name == "atlas" else Path(name)
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
    return "sha256:" + digest.hexdigest()[:16]
