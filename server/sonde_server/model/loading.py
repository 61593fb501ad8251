"""Loads a model from a directory or the hub. Weights must be safetensors, and no code from a checkpoint is run."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..builtin import ATLAS_DIRECTORY
from ..errors import UnsupportedModel
from ..questions.places import ModelDescription
from .anatomy import Decoder
from .configuration import read_configuration, reading
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
"""How many weights are named if a checkpoint lacks some."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready for requests: its parts, its vocabulary, and its description for GetModel."""

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

    The model is put on one device or, with `device_map`, on several: accelerate spreads it, or a JSON file does. With
    `pack_weights`, a second copy of the weights makes products of few rows faster; this applies to float32 on a CPU.

    Raises:
        UnsupportedModel: for an unknown name, device or architecture, for a checkpoint that is faulty, incomplete or
            not safetensors, and for a device map that does not fit. The message says what is accepted.
    """
    transformers_logging.disable_progress_bar()
    source = str(ATLAS_DIRECTORY) if name == "atlas" else name
    place = _device(device)
    config = read_configuration(source, revision)
    _refuse_pickles(source)
    options = {"revision": revision, "config": config, "dtype": _dtype(dtype, place, getattr(config, "dtype", None))}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # Before transformers 5.21 such a model uses "sdpa" by default, which ignores the cap.
        options["attn_implementation"] = "eager"
    try:
        if device_map is None:
            model = _pretrained(source, options, f"cannot load {source!r}")
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


def _pretrained(source: str, options: dict[str, Any], fault: str) -> PreTrainedModel:
    """The model. `fault` introduces the reason for which transformers cannot load it.

    Raises:
        UnsupportedModel: for a faulty checkpoint, and for one that lacks weights, which transformers would initialise
            at random.
    """
    with reading(fault):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    model: PreTrainedModel
    model, told = loaded
    wrong = [f"{name} is missing" for name in sorted(told["missing_keys"])]
    for name, found, expected in sorted(told["mismatched_keys"]):
        wrong.append(f"{name} has shape {tuple(found)} instead of {tuple(expected)}")
    if wrong:
        shown = "; ".join(wrong[:MOST_SHOWN]) + (f"; and {len(wrong) - MOST_SHOWN} more" if wrong[MOST_SHOWN:] else "")
        raise UnsupportedModel(f"{source!r} is not a complete {type(model).__name__}: {shown}")
    return model


def _spread(source: str, options: dict[str, Any], device_map: str) -> PreTrainedModel:
    spread = read_device_map(device_map)
    with offload_folder() as folder:
        where = {"device_map": spread, "offload_folder": folder.path}
        model = _pretrained(source, options | where, f"cannot load {source!r} with --device-map {device_map}")
        check_tied(model)
        folder.belongs_to(model)
    return model


def _refuse_pickles(source: str) -> None:
    """Refuses a directory whose weights are pickles, which can run code when they are read."""
    directory = Path(source)
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"expected safetensors in {source!r}, got pickles ({pickles[0]}), which can run code when they are read; "
            f"{_CONVERT}"
        )


def _device(device: str) -> torch.device:
    """Raises UnsupportedModel if torch cannot use this device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UnsupportedModel(
            f"--device: expected one of {', '.join(there)}, got {device}, which cannot be used: {reason}"
        ) from error
    return torch.device(device)


def _dtype(dtype: str, place: torch.device, checkpoint: object) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if place.type == "cpu" or not isinstance(checkpoint, torch.dtype):
        return torch.float32
    return checkpoint


def _tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None if it has none that can be read. The log then says why."""
    try:
        with reading("its tokenizer is faulty"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=False
            )
            # Without a file many classes make a tokenizer of special tokens only, to which any text is empty or <unk>.
            if set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
                return tokenizer
        reason = "its vocabulary is empty"
    except (OSError, UnsupportedModel) as error:
        reason = " ".join(str(error).split())
    _log.warning("%s has no readable tokenizer, so prompts must be token ids: %s", source, reason)
    return None


def _describe(name: str, revision: str | None, decoder: Decoder, device: str) -> ModelDescription:
    config = decoder.model.config
    return ModelDescription(
        name=_public_name(name),
        revision=revision or getattr(config, "_commit_hash", None) or _fingerprint(name),
        architecture=str(config.model_type),
        data_type=decoder.data_type,
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
    """The revision of a checkpoint in a directory: a hash of its weights."""
    directory = ATLAS_DIRECTORY if name == "atlas" else Path(name)
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
    return "sha256:" + digest.hexdigest()[:16]
