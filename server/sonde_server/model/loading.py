"""Loads a model from a directory, the hub or a GGUF file. Weights are never pickles; no code of a checkpoint is run."""

import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..errors import UnsupportedModel
from ..questions.places import ModelDescription
from .anatomy import Decoder
from .checkpoint import CONVERT, Checkpoint, find
from .configuration import reading
from .eyes import Eye
from .families import family_of
from .kernels import fuse_activations
from .packing import pack
from .spreading import check_tied, offload_folder, places, read_device_map
from .vocabulary import Vocabulary

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
    """Loads `name`: "atlas" (the embedded model), a directory, a GGUF file, or a hub id.

    The model is put on one device or, with `device_map`, on several: accelerate spreads it, or a JSON file does. With
    `pack_weights`, a second copy of weights makes products of few rows faster, where this is measured to be so on this
    processor; this applies to float32 on a CPU.

    Raises:
        UnsupportedModel: for an unknown name, device or architecture, for a checkpoint that is faulty, incomplete or
            neither safetensors nor GGUF, and for a device map that does not fit. The message says what is accepted.
    """
    transformers_logging.disable_progress_bar()
    place = _device(device)
    checkpoint = find(name, revision)
    config = checkpoint.configuration()
    options = {"config": config, "dtype": _dtype(dtype, place, checkpoint.dtype(config))}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # Before transformers 5.21 such a model uses "sdpa" by default, which ignores the cap.
        options["attn_implementation"] = "eager"
    try:
        if device_map is None:
            model = _pretrained(checkpoint, options, f"cannot load {checkpoint.source!r}")
            model.to(place)  # type: ignore[arg-type]
        else:
            model = _spread(checkpoint, options, device_map)
    except OSError as error:
        raise UnsupportedModel(f"cannot load {name!r} as safetensors: {error}; {CONVERT}") from error
    model.eval().requires_grad_(requires_grad=False)
    fuse_activations(model)
    if pack_weights:
        pack(model)
    decoder = Decoder(model)
    decoder.eye = _eye(checkpoint, decoder)
    vocabulary = Vocabulary(_tokenizer(checkpoint), decoder.vocabulary_size, decoder.eye)
    where = str(place) if device_map is None else places(model)
    description = replace(
        _describe(checkpoint, decoder, where), chat_template=vocabulary.chat_template, image=vocabulary.image
    )
    return LoadedModel(decoder, vocabulary, description)


def _pretrained(checkpoint: Checkpoint, options: dict[str, Any], fault: str) -> PreTrainedModel:
    """The model. `fault` introduces the reason for which transformers cannot load it.

    Raises:
        UnsupportedModel: for a faulty checkpoint, and for one that lacks weights, which transformers would initialise
            at random.
    """
    kind = AutoModelForCausalLM if family_of(options["config"]).vision is None else AutoModelForImageTextToText
    with reading(fault):
        loaded: Any = checkpoint.read(
            kind.from_pretrained,
            use_safetensors=True,
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
        raise UnsupportedModel(f"{checkpoint.source!r} is not a complete {type(model).__name__}: {shown}")
    checkpoint.check(model)
    return model


def _spread(checkpoint: Checkpoint, options: dict[str, Any], device_map: str) -> PreTrainedModel:
    spread = read_device_map(device_map)
    with offload_folder() as folder:
        where = {"device_map": spread, "offload_folder": folder.path}
        model = _pretrained(
            checkpoint, options | where, f"cannot load {checkpoint.source!r} with --device-map {device_map}"
        )
        check_tied(model)
        folder.belongs_to(model)
    return model


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


def _dtype(dtype: str, place: torch.device, own: torch.dtype | None) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if place.type == "cpu" or own is None else own


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint, or None if it has none that can be read. The log then says why."""
    try:
        with reading("its tokenizer is faulty"):
            tokenizer = checkpoint.tokenizer()
            # Without a file many classes make a tokenizer of special tokens only, to which any text is empty or <unk>.
            if set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
                return tokenizer
        reason = "its vocabulary is empty"
    except (OSError, UnsupportedModel) as error:
        reason = " ".join(str(error).split())
    _log.warning("%s has no readable tokenizer, so prompts must be token ids: %s", checkpoint.source, reason)
    return None


def _eye(checkpoint: Checkpoint, decoder: Decoder) -> Eye | None:
    """What sees images for the model, or None where it takes none, or cannot here. The log then says why."""
    vision = decoder.family.vision
    if vision is None:
        return None
    try:
        if find_spec("PIL") is None:
            raise UnsupportedModel("Pillow is not installed; the extra `vision` installs it")
        if vision.token >= min(decoder.vocabulary_size, int(decoder.embedding.weight.shape[0])):
            raise UnsupportedModel(f"the token of images, {vision.token}, is not in the vocabulary")
        with reading("its image processor is faulty"):
            return Eye(decoder.model, vision, checkpoint.image_processor())
    except (OSError, UnsupportedModel) as error:
        reason = " ".join(str(error).split())
    _log.warning("%s is hosted for texts alone, without images: %s", checkpoint.source, reason)
    return None


def _describe(checkpoint: Checkpoint, decoder: Decoder, device: str) -> ModelDescription:
    config = decoder.model.config
    return ModelDescription(
        name=checkpoint.public_name,
        revision=checkpoint.revision(config),
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
