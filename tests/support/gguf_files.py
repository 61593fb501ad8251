"""GGUF files of a tiny Llama, written tensor by tensor as llama.cpp's converter writes them, and what they should give.

The weights are drawn here and stored in blocks of 32 (Q8_0); the model to compare with gets those that the blocks stand
for. llama.cpp keeps the rotated dimensions of a head in pairs where transformers keeps them in halves, so the rows of
queries and keys are stored in another order.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.models import byte_level_tokenizer, randomise_vectors

Array = npt.NDArray[Any]

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}"
_IN_A_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass
class Vocabulary:
    """A byte-level vocabulary: its tokens in order, its merges, and which tokens are control tokens."""

    tokens: list[str]
    merges: list[str]
    control: frozenset[str] = frozenset()


def trained() -> Vocabulary:
    """That of the tests' tokenizer, with a begin token."""
    tokenizer = byte_level_tokenizer("<s>")
    found = tokenizer.get_vocab()
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    return Vocabulary(sorted(found, key=lambda token: found[token]), merges, frozenset({"<s>", "<|endoftext|>"}))


@dataclass
class TinyLlama:
    """A model, and what a file says of it. Tests change `settings` and `tensors` before it is written."""

    vocabulary: Vocabulary = field(default_factory=trained)
    rule: str = "gpt-2"
    architecture: str = "llama"
    tied: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = LlamaConfig(
            vocab_size=len(self.vocabulary.tokens),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=80,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            rms_norm_eps=1e-4,
            tie_word_embeddings=self.tied,
            initializer_range=0.2,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = LlamaForCausalLM(config).eval()
        randomise_vectors(self.model, torch.Generator().manual_seed(1))
        for name, parameter in self.model.named_parameters():
            value = parameter.detach().numpy()
            if value.ndim == 2:
                value = dequantize(quantize(value, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
                parameter.data = torch.from_numpy(value)
            self.tensors[_stored_name(name)] = _stored_rows(name, value, config)
        self.settings = {
            "context_length": 80,
            "embedding_length": 64,
            "block_count": 3,
            "feed_forward_length": 96,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.layer_norm_rms_epsilon": 1e-4,
            "rope.freq_base": 500.0,
            "rope.dimension_count": 16,
            "vocab_size": len(self.vocabulary.tokens),
        }

    def write(self, path: Path, **general: Any) -> Path:
        """Writes the file; `general` are further settings, by their full names with _ for the dots."""
        writer = GGUFWriter(path, self.architecture)
        writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
        for name, value in {**_prefixed(self.architecture, self.settings), **general}.items():
            _add(writer, name.replace("__", "."), value)
        self._add_vocabulary(writer)
        for name, tensor in self.tensors.items():
            if tensor.ndim == 2:
                writer.add_tensor(
                    name, quantize(tensor, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0
                )
            else:
                writer.add_tensor(name, np.ascontiguousarray(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add_vocabulary(self, writer: GGUFWriter) -> None:
        tokens = self.vocabulary.tokens
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.rule)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in self.vocabulary.control else 1 for token in tokens])
        writer.add_token_merges(self.vocabulary.merges)
        writer.add_chat_template(TEMPLATE)
        if "<s>" in tokens:
            writer.add_bos_token_id(tokens.index("<s>"))
            writer.add_add_bos_token(True)
        if "<|endoftext|>" in tokens:
            writer.add_eos_token_id(tokens.index("<|endoftext|>"))


def _prefixed(prefix: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in settings.items()}


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, Iterable):
        writer.add_array(name, list(value))
    else:
        writer.add_uint32(name, value)


def _stored_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_IN_A_BLOCK[part]}.{kind}"


def _stored_rows(name: str, value: Array, config: LlamaConfig) -> Array:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    halves = value.reshape(heads, 2, len(value) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))
