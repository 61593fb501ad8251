"""The models and prompts that everything is measured on: real shapes, random weights, token ids for prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Shape:
    """One architecture and size."""

    name: str
    title: str
    config: Callable[[], PreTrainedConfig]
    edited_layers: tuple[int, ...] = (2, 6, 10)
    """Whose neurons are swept."""
    scaled_layer: int = 6
    """Of the one neuron that is scaled."""


def _gpt2() -> GPT2Config:
    # Wider than the customary 0.02: the effect of a single neuron must stand out of float32's rounding.
    return GPT2Config(initializer_range=0.08, bos_token_id=0, eos_token_id=0)


def _llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=1024,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _llama_8b() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        initializer_range=0.03,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _tiny_gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=300, n_positions=64, n_embd=48, n_layer=4, n_head=4, initializer_range=0.2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip


def _tiny_llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=96,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )


SHAPES: dict[str, Shape] = {
    "gpt2": Shape("gpt2", "GPT-2 small (12 blocks, D 768, vocabulary 50257)", _gpt2),
    "llama": Shape("llama", "Llama shape (12 blocks, D 768, MLP 2048, vocabulary 32000)", _llama),
    "llama-8b": Shape("llama-8b", "Llama shape of 8B parameters (32 blocks, D 4096)", _llama_8b, (5, 16, 27), 16),
    "tiny-gpt2": Shape("tiny-gpt2", "a tiny GPT-2", _tiny_gpt2, (0, 2), 1),
    "tiny-llama": Shape("tiny-llama", "a tiny Llama", _tiny_llama, (0, 2), 1),
}


def save(shape: Shape, directory: Path, seed: int = 0) -> Path:
    """Draws the weights, float32, and saves them as safetensors. There is no tokenizer: prompts are token ids."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32)
    model.save_pretrained(directory)
    return directory


def load(directory: Path) -> PreTrainedModel:
    """The plain model of transformers, as every contender but Sonde starts from it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval().requires_grad_(requires_grad=False)
    return model


def prompt(vocabulary: int, length: int, number: int) -> tuple[int, ...]:
    """The prompt of this number: another number gives another prompt, so that nothing is cached when it is asked."""
    drawn: Sequence[int] = np.random.RandomState(1000 + number).randint(1, vocabulary, length).tolist()
    return tuple(drawn)
