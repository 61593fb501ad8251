"""Reads a GGUF file with transformers' own reader, and refuses what that reader would get wrong.

GGUF is the format of llama.cpp: one file with quantised weights, a description of the model, and its tokenizer. The
reader dequantises the weights and makes a configuration of the description, but passes over what it does not know
without a word. So the description is compared with the configuration, and every tensor must have become a weight.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..errors import UnsupportedModel
from .configuration import check_attributes, check_rotary, reading
from .families import family_of

ARCHITECTURES = ("gemma2", "gemma3", "llama", "qwen2", "qwen3")
"""llama.cpp's names of the architectures that the reader gets right, where the checks below pass."""
_MAGIC = b"GGUF"
_MOST_SHOWN = 5


def is_gguf(name: str) -> bool:
    """Whether the name of a model means a GGUF file."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of its model.

    `quantisation`: llama.cpp's name of how the weights are stored, such as "Q4_1"; empty if the file does not say it.
    `described`: what it says of its architecture, by key, without the architecture's name in front. `tokenizer`: what
    it says of the tokenizer; lists of texts are their lengths.
    """

    path: Path
    quantisation: str
    architecture: str
    described: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    tensors: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the matrices; float32 where they are quantised."""
        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(self.quantisation, torch.float32)

    def read(self, read: Callable[..., Any], **options: Any) -> Any:
        """What a `from_pretrained` makes of this file alone: nothing that lies beside it is read."""
        # The reader shows its progress on standard error, whatever transformers is told about bars.
        with TemporaryDirectory() as nothing, redirect_stderr(StringIO()):
            return read(nothing, gguf_file=str(self.path.resolve()), **options)

    def configuration(self) -> PreTrainedConfig:
        """The model's configuration.

        Raises:
            UnsupportedModel: if the file says what its configuration does not.
        """
        shown = str(self.path)
        with _whole(shown):
            config: PreTrainedConfig = self.read(AutoConfig.from_pretrained, trust_remote_code=False)
        with reading(f"cannot read {shown!r}"):
            check_rotary(shown, config)
            family_of(config)
            check_attributes(shown, config, config.to_dict())
            wrong = list(_differences(self.described, config))
        if wrong:
            raise UnsupportedModel(
                f"{shown!r} would not be computed exactly, because transformers does not take over all that it says: "
                + _listed(wrong)
            )
        return config

    def check_weights(self, model: PreTrainedModel) -> None:
        """Checks that every tensor of the file has become a weight of the model.

        Raises:
            UnsupportedModel: if the reader has left one out.
        """
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        (architecture,) = (number for number, name in MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = get_tensor_name_map(architecture, model.config.num_hidden_layers)
        weights = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
        left_out = [name for name in self.tensors if name not in weights]
        if left_out:
            raise UnsupportedModel(
                f"{str(self.path)!r} would not be computed exactly, because transformers has no place for tensors that "
                f"it holds: {_listed(left_out)}"
            )


def read_gguf(name: str) -> GgufFile:
    """What a GGUF file says of its model.

    Raises:
        UnsupportedModel: for a file that is none or not whole, one piece of several, or of an architecture that is not
            hosted, and if the package that reads such files is not installed.
    """
    path = Path(name)
    if not path.is_file():
        raise UnsupportedModel(f"{name!r} is not a file that can be read")
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise UnsupportedModel(f"expected a GGUF file, got {name!r}, which does not begin as such a file does")
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedModel(f"{name!r} needs the extra that reads GGUF files: pip install 'sonde[gguf]'")
    with _whole(name):
        file = _described(path)
    if file.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(
            f"expected a GGUF file of one of the architectures {known}, got {file.architecture!r} in {name!r}"
        )
    return file


def _described(path: Path) -> GgufFile:
    from gguf import LlamaFileType
    from transformers.integrations.gguf.reader import read_gguf_metadata

    said, tensors = read_gguf_metadata(str(path))  # lists of texts, such as the vocabulary, as their lengths
    pieces = said.get("split.count", 1)
    if pieces > 1:
        raise UnsupportedModel(
            f"{str(path)!r} is piece {said.get('split.no', 0) + 1} of {pieces}, and only whole GGUF files are hosted; "
            "to join them: llama-gguf-split --merge FIRST_PIECE WHOLE"
        )
    kind = said.get("general.file_type")
    name = "" if kind is None else LlamaFileType(kind).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    architecture = said["general.architecture"]

    def under(prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}

    return GgufFile(path, name, architecture, under(f"{architecture}."), under("tokenizer.ggml."), tensors)


@contextmanager
def _whole(name: str) -> Iterator[None]:
    try:
        yield
    except (UnsupportedModel, MemoryError):
        raise
    except Exception as error:
        # A file that is cut off fails wherever it ends, in words that say nothing of the file.
        raise UnsupportedModel(
            f"{name!r} is not a whole GGUF file ({type(error).__name__}: {' '.join(str(error).split())}); if it came "
            "in pieces, join them"
        ) from error


def _differences(described: Mapping[str, Any], config: PreTrainedConfig) -> Iterator[str]:
    """What a file says, or llama.cpp takes where it says nothing, and the configuration does not say."""
    made = _made(config)
    head = described.get("attention.key_length", config.hidden_size // config.num_attention_heads)
    silent = {
        "attention.head_count_kv": config.num_attention_heads,
        "attention.key_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": 10000.0,
    }
    for key, value in {**silent, **described}.items():
        if key not in made:
            yield f"{key} is {_short(value)}, which it does not know"
        elif not _same(value, made[key]):
            yield f"{key} is {_short(value)}, which it takes for {_short(made[key])}"
    scale = getattr(config, "query_pre_attn_scalar", made["attention.key_length"])
    if scale != made["attention.key_length"]:
        yield f"the scale of the attention's scores, which it takes for that of heads of size {scale}"


def _made(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says, under the keys of GGUF files."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary = getattr(config, "rope_parameters", None) or {}
    everywhere = rotary.get("full_attention", rotary)
    windows = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": config.sliding_window if any(windows) else 0,
        "attention.sliding_window_pattern": windows,
        "rope.dimension_count": head,
        "rope.freq_base": everywhere.get("rope_theta"),
        "rope.freq_base_swa": rotary.get("sliding_attention", everywhere).get("rope_theta"),
        "rope.scaling.type": "none",
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None) or 0.0,
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None) or 0.0,
        # What llama.cpp calls the order of the dimensions of a head, which the reader puts right.
        "tensor_data_layout": "Meta AI original pth",
    }


def _same(said: Any, made: Any) -> bool:
    if isinstance(made, list) and isinstance(said, int):
        return made == [bool((layer + 1) % said) for layer in range(len(made))]  # all but every so many
    if isinstance(said, list) and not isinstance(made, list):
        return all(_same(one, made) for one in said)  # by layer
    if isinstance(said, float) and isinstance(made, float):
        return math.isclose(said, made, rel_tol=1e-6)  # stored as float32
    return bool(said == made)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]}...]"


def _listed(names: list[str]) -> str:
    more = f"; and {len(names) - _MOST_SHOWN} more" if names[_MOST_SHOWN:] else ""
    return "; ".join(names[:_MOST_SHOWN]) + more
