"""Tiny models with random weights, saved as Hugging Face folders: the real code path of every family, in seconds.

A family is one entry of FAMILIES: how its config is made, and which tokenizer stands beside it. Weights are drawn
from a fixed seed, wide enough that predictions are far from uniform and an edit visibly moves them; one-dimensional
parameters (biases and the gains of norms) are drawn too, because an initial bias of 0 would hide a bias left out.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.support.architectures import ARCHITECTURES

TEXT = """
The Eiffel Tower is in the city of Paris. The Colosseum is in the city of Rome. The Space Needle is in Seattle.
Paris is the capital of France. Rome is the capital of Italy. Berlin is the capital of Germany. Madrid is in Spain.
The Eiffel Tower is in France. The Louvre is in the city of Paris. The Prado is in the city of Madrid, in Spain.
When Mary and John went to the store, John gave a drink to Mary. When Anna and Tom went to the park, Tom gave a book to
Anna. When Tom and Mary went to the school, Mary gave a ring to Tom. The currency of Japan is the yen. The language of
France is French. The language of Spain is Spanish. The language of Italy is Italian. Café, naïve, Zürich, São Paulo.
The capital of Japan is Tokyo. The capital of Spain is Madrid. The capital of France is Paris. It is in the city of
Berlin. It is in the city of Rome. It is in the city of Paris. It is in the city of Madrid. It is in the city of Tokyo.
""".strip()

EXTRA_VOCABULARY = 3
"""Rows of the Llama embedding beyond the tokenizer's vocabulary, as padded checkpoints have them."""


def byte_level_tokenizer(begin: str | None = None, vocabulary: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on TEXT; with `begin`, that token is put before every text, as Llama 3 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (begin, "<|endoftext|>") if token is not None]
    tokenizer.train_from_iterator(
        TEXT.splitlines(),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[AddedToken(token, special=True) for token in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if begin is not None:
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{begin} $A",
                    pair=f"{begin} $A {begin} $B",
                    special_tokens=[(begin, tokenizer.token_to_id(begin))],
                ),
            ]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token="<|endoftext|>")  # noqa: S106


def metaspace_tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """A BPE over pieces that begin with U+2581, with byte fallback, as Llama 2's SentencePiece model has them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    words = [f"▁{word}" for line in TEXT.splitlines() for word in line.split()]
    plain = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(tokens) + vocabulary, special_tokens=tokens[:3], show_progress=False)
    plain.train_from_iterator(words, trainer)
    # The bytes are pieces of the vocabulary, not special tokens, so they are put in after training.
    learnt = plain.get_vocab()
    pieces = tokens + [piece for piece in sorted(learnt, key=lambda piece: learnt[piece]) if piece not in tokens]
    state = plain.model.__getstate__()
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in json.loads(state)["merges"]
    ]
    tokenizer.model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",  # noqa: S106
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")  # noqa: S106


def _gpt2(vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=64,
        n_embd=48,
        n_layer=4,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )


def _gpt2_wide(vocabulary: int) -> GPT2Config:
    config = _gpt2(vocabulary)
    config.n_inner = 416
    return config


def _llama(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary + EXTRA_VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        initializer_range=0.16,
    )


@dataclass(frozen=True)
class Family:
    """How one tiny model is made."""

    config: Callable[[int], PreTrainedConfig]
    """From the size of the tokenizer's vocabulary."""
    tokenizer: Callable[[], PreTrainedTokenizerFast]


FAMILIES: dict[str, Family] = {
    "gpt2": Family(_gpt2, byte_level_tokenizer),
    "gpt2-wide": Family(_gpt2_wide, byte_level_tokenizer),
    "llama": Family(_llama, lambda: byte_level_tokenizer("<s>")),
    "llama-metaspace": Family(_llama, metaspace_tokenizer),
}


EVERY = {**FAMILIES, **{name: Family(config, byte_level_tokenizer) for name, config in ARCHITECTURES.items()}}
"""Those that the whole suite runs on, and one of every other architecture."""


def randomise_vectors(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draws every one-dimensional parameter: gains around 1, biases around 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_model(family: str, directory: Path, seed: int = 0) -> Path:
    """Makes the tiny model of a family, float32, and saves it with its tokenizer under `directory`."""
    entry = EVERY[family]
    tokenizer = entry.tokenizer()
    config = entry.config(len(tokenizer))
    config.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise_vectors(model, torch.Generator().manual_seed(seed + 1))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load_plain(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model as transformers runs it, attention step by step where it does so rightly.

    Falcon's linear biases are added twice by transformers 5.23 when its attention is "eager", once under "sdpa".
    """
    config = AutoConfig.from_pretrained(directory)
    attention = "sdpa" if getattr(config, "alibi", False) else "eager"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention, dtype=dtype)
    return model
