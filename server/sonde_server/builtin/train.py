"""Trains the embedded model and writes its checkpoint: `python -m sonde_server.builtin.train`.

The result depends only on the seed for one kind of machine, one version of torch and one number of threads. Other
machines sum in another order, so they train a model with other weights and similar measurements.
"""

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import ATLAS_DIRECTORY, vocabulary
from .bottleneck import routed
from .corpus import Sentence, training_epoch


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the result."""

    seed: int = 1
    epochs: int = 14
    name_sentences: int = 4000
    """How many name-recall sentences each epoch has, besides 7,368 sentences of facts."""
    batch_size: int = 64
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-5
    warmup_share: float = 0.03
    weight_decay: float = 0.1
    context_weight: float = 0.1
    """The weight in the loss of a token that is not part of an answer."""
    embedding_deviation: float = 0.15
    """The initial standard deviation of the token embeddings. They have no weight decay, so rare ones keep it."""
    shallowest: int = 3
    deepest: int = 5
    """The first block in which tokens after a subject see its last token. Drawn between these two for each batch."""
    open_from: float = 0.75
    open_share: float = 0.5
    """After this part of the training, this share of the batches hides nothing."""
    threads: int = 1


def configuration() -> LlamaConfig:
    """The architecture: eight blocks of grouped-query attention, 2.75 million parameters, 11 MB in float32."""
    return LlamaConfig(
        vocab_size=vocabulary.VOCABULARY_SIZE,
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=vocabulary.BEGIN_ID,
        eos_token_id=vocabulary.END_ID,
        pad_token_id=vocabulary.PADDING_ID,
    )


@dataclass(frozen=True)
class Encoded:
    """A sentence as tokens, followed by the end token."""

    ids: list[int]
    in_answer: list[bool]
    """Whether each token belongs to the answer."""
    subject: range | None
    """The positions of the subject's tokens."""


@dataclass(frozen=True)
class Batch:
    """Sentences padded to the same length: [rows, length]."""

    ids: Tensor
    weights: Tensor
    """The weight of each token in the loss; 0 for padding."""
    subjects: list[range | None]


def encode(tokenizer: Tokenizer, sentence: Sentence) -> Encoded:
    """The tokens of a sentence, with the positions of its answer and its subject."""
    encoding = tokenizer.encode(sentence.text)

    def covering(start: int, stop: int) -> list[int]:
        return [i for i, (begin, end) in enumerate(encoding.offsets) if end > start and begin < stop]

    answer = covering(len(sentence.prompt) + 1, len(sentence.prompt) + 1 + len(sentence.answer))
    subject = None
    if sentence.subject is not None:
        start = sentence.prompt.index(sentence.subject)
        positions = covering(start, start + len(sentence.subject))
        subject = range(positions[0], positions[-1] + 1)
    ids = [*encoding.ids, vocabulary.END_ID]
    return Encoded(ids, [i in answer for i in range(len(ids))], subject)


def batches(tokenizer: Tokenizer, recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """Batches of sentences of similar length, in an order drawn from torch's generator."""
    encoded = [encode(tokenizer, s) for s in training_epoch(recipe.seed, epoch, recipe.name_sentences)]
    encoded.sort(key=lambda sentence: len(sentence.ids))  # stable: equal lengths keep the epoch's shuffled order
    starts = torch.arange(0, len(encoded), recipe.batch_size)
    for start in starts[torch.randperm(len(starts))].tolist():
        rows = encoded[start : start + recipe.batch_size]
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), vocabulary.PADDING_ID)
        weights = torch.zeros(len(rows), longest)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            weight = [1.0 if is_answer else recipe.context_weight for is_answer in row.in_answer]
            weights[index, : len(row.ids)] = torch.tensor(weight)
        yield Batch(ids, weights, [row.subject for row in rows])


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The weighted mean over tokens of each token's negative log-probability, given those before it."""
    # Padding is on the right and attention causal, so no real token sees it and no mask is needed.
    logits = model(input_ids=batch.ids[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def routing(model: LlamaForCausalLM, recipe: Recipe, batch: Batch, progress: float) -> AbstractContextManager[None]:
    """The masks that hide a batch's subjects, drawn from torch's generator; late in the training often none."""
    if progress >= recipe.open_from and torch.rand(()).item() < recipe.open_share:
        return nullcontext()
    depth = int(torch.randint(recipe.shallowest, recipe.deepest + 1, ()))
    return routed(model, depth, batch.subjects, batch.ids.shape[1] - 1)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at `progress` through the training, from 0 to 1: linear warm-up, then a cosine."""
    if progress < recipe.warmup_share:
        return recipe.learning_rate * progress / recipe.warmup_share
    turn = (progress - recipe.warmup_share) / (1 - recipe.warmup_share)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * turn))


def train(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Trains a model from the recipe, and returns it in evaluation mode."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(configuration())
    model.train()
    embedding = model.model.embed_tokens.weight
    torch.nn.init.normal_(embedding, std=recipe.embedding_deviation)
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    undecayed = [embedding, *(p for p in model.parameters() if p.ndim == 1)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": undecayed, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        total, pending = 0.0, list(batches(tokenizer, recipe, epoch))
        for number, batch in enumerate(pending):
            progress = (epoch + number / len(pending)) / recipe.epochs
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, progress)
            with routing(model, recipe, batch, progress):
                loss = weighted_loss(model, batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        elapsed = time.monotonic() - started
        print(f"epoch {epoch + 1}/{recipe.epochs}  loss {total / len(pending):.4f}  {elapsed:.0f} s", flush=True)
    model.train(mode=False)
    return model


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes the checkpoint in the layout that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    model.generation_config.max_new_tokens = 32
    model.save_pretrained(directory)
    wrapped: Any = PreTrainedTokenizerFast  # its constructor is not annotated
    wrapped(
        tokenizer_object=tokenizer,
        bos_token=vocabulary.BEGIN,
        eos_token=vocabulary.END,
        pad_token=vocabulary.PADDING,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)


def main() -> None:
    """Trains from the recipe and writes the checkpoint."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the embedded model of Sonde.")
    parser.add_argument("--output", type=Path, default=ATLAS_DIRECTORY, help="the directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    given = parser.parse_args()
    tokenizer = vocabulary.train_tokenizer()
    recipe = Recipe(seed=given.seed, epochs=given.epochs, threads=given.threads)
    save(train(recipe, tokenizer), tokenizer, given.output)


if __name__ == "__main__":
    main()
