"""Reads the configuration of a checkpoint before its weights are read, and refuses what would not be computed exactly.

A fault in the files of a checkpoint ends in an UnsupportedModel that names it, never in a model that ignores it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import UnsupportedModel
from .families import family_of
from .families.attributes import unaccounted
from .rotary import rotary_parameters

_MERGE = (
    'to merge it: python -c "from peft import AutoPeftModelForCausalLM as Model; '
    "Model.from_pretrained('ADAPTER').merge_and_unload().save_pretrained('NEW')\""
)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever transformers raises over a file of a checkpoint into an UnsupportedModel that names `what`."""
    try:
        yield
    except (UnsupportedModel, OSError, MemoryError, torch.OutOfMemoryError):
        # The caller explains an OSError. The others say nothing about the file.
        raise
    except Exception as error:
        # Each class of configuration, model and tokenizer checks its files in its own way, or not at all.
        named = isinstance(error, ValueError | ImportError | StrictDataclassError)
        kind = "" if named else f"{type(error).__name__}: "
        raise UnsupportedModel(f"{what}: {kind}{' '.join(str(error).split())}") from error


def read_configuration(source: str, revision: str | None) -> PreTrainedConfig:
    """The configuration of a directory or a hub id, whose family is known.

    Raises:
        UnsupportedModel: for a name that leads to no model, a faulty configuration, and one that asks for what this
            server does not compute.
    """
    if Path(source).is_dir():
        _refuse_adapter(source, revision)  # which may lack a configuration
    try:
        with reading(f"the configuration of {source!r} is faulty"):
            written = _written(source, revision)
            config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            check_rotary(source, config)
            family_of(config)
    except OSError as error:
        raise UnsupportedModel(
            f"{source!r} is neither a model directory nor a hub id that can be read: {error}"
        ) from error
    if not Path(source).is_dir():
        _refuse_adapter(source, revision)
    check_attributes(source, config, written)
    return config


def _refuse_adapter(source: str, revision: str | None) -> None:
    """An adapter beside a whole model is refused too: nothing says whether it is meant to be applied."""
    try:
        file = find_adapter_config_file(source, revision=revision)
    except (OSError, ValueError):
        return  # no such model, which reading its configuration says better
    if file is None:
        return
    base = ""
    try:
        found = json.loads(Path(file).read_text("utf-8"))
        base = f" for {found['base_model_name_or_path']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the base is named only to help
    raise UnsupportedModel(
        f"{source!r} holds an adapter{base} (adapter_config.json), and adapters are not hosted: merge it into its base "
        f"model, or remove that file to host the model beside it without the adapter; {_MERGE}"
    )


def _written(source: str, revision: str | None) -> Mapping[str, Any]:
    """What config.json holds. Refuses values that transformers fails on without naming them, or that it skips."""
    written, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    if not isinstance(written, Mapping):
        return {}  # reading the configuration says what is wrong
    _check_dtype(source, written)
    _check_quantisation(source, written.get("quantization_config"))
    return written


def _check_dtype(source: str, written: Mapping[str, Any]) -> None:
    for name in ("dtype", "torch_dtype"):
        dtype = written.get(name)
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UnsupportedModel(
                f"expected float32, bfloat16 or float16 as {name}, got {dtype!r} in the configuration of {source!r}"
            )


def _check_quantisation(source: str, quantised: object) -> None:
    if quantised is None:
        return
    settings = quantised if isinstance(quantised, Mapping) else {}
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        method = "bitsandbytes"  # whose first checkpoints do not name it
    if method is None:
        raise UnsupportedModel(f"expected a quant_method in the quantization_config of {source!r}, got none")
    if method not in ("bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING):
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        raise UnsupportedModel(f"expected a quant_method of {known}, got {method!r} in the configuration of {source!r}")


def check_attributes(source: str, config: PreTrainedConfig, written: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for an attribute that `written` sets, and that the model's family would ignore."""
    text = config.get_text_config()
    names = list(unaccounted(config, written))
    if text is not config:
        names += unaccounted(text, written.get("text_config") or {})
    if names:
        raise UnsupportedModel(
            f"{source!r} sets {', '.join(names)} in its configuration, which this server does not know for models of "
            f"type {config.model_type!r}, so they might not be computed exactly"
        )


def check_rotary(source: str, config: PreTrainedConfig) -> None:
    """Raises UnsupportedModel for rotary positions that transformers does not scale as the configuration says."""
    known = ("default", *sorted(ROPE_INIT_FUNCTIONS))
    for parameters in rotary_parameters(config.get_text_config()):
        kind = parameters.get("rope_type", "default")
        if kind not in known:
            raise UnsupportedModel(
                f"expected a rope_type of {', '.join(known)}, got {kind!r} in the configuration of {source!r}"
            )
        if kind == "default" and any(value not in (None, 1.0) for value in _scales(parameters)):
            raise UnsupportedModel(
                f"expected a rope_type beside the factor in the configuration of {source!r}, got none"
            )


def _scales(parameters: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in parameters.items() if name.endswith("factor") and name != "partial_rotary_factor"]
