"""Measures the embedded model: `python -m sonde_server.builtin.evaluate`.

Measures recall of facts in withheld phrasings, recall of names in withheld pairs, and causal traces of facts.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from . import ATLAS_DIRECTORY
from .causal import TRACED, CausalTrace, MeanTrace, causal_trace, mean_trace, traced_facts
from .corpus import Fact, Sentence, withheld_fact_prompts, withheld_name_sentences
from .vocabulary import PADDING_ID

_BATCH_SIZE = 128


def load(directory: Path = ATLAS_DIRECTORY) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model in float32, in evaluation mode, and its tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.train(mode=False), tokenizer


@dataclass(frozen=True)
class Answers:
    """The probabilities of the answers to a list of prompts. Every tensor is [sentences]."""

    first_token_probability: Tensor
    """The probability of the answer's first token."""
    answer_probability: Tensor
    """The probability of all of the answer's tokens, the product of the steps."""
    first_token_is_best: Tensor
    """Whether the answer's first token is the most probable one."""


@torch.inference_mode()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sentence]) -> Answers:
    """Runs the model on the prompt of every sentence."""
    first, whole, best = (
        torch.zeros(len(sentences)),
        torch.zeros(len(sentences)),
        torch.zeros(len(sentences), dtype=torch.bool),
    )
    prompts = [tokenizer(s.prompt)["input_ids"] for s in sentences]
    answers = [tokenizer(f" {s.answer}", add_special_tokens=False)["input_ids"] for s in sentences]
    order = sorted(range(len(sentences)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for start in range(0, len(order), _BATCH_SIZE):
        chosen = order[start : start + _BATCH_SIZE]
        rows = [torch.tensor(prompts[i] + answers[i]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING_ID)
        # Padding is on the right, and attention is causal, so no mask is needed.
        log_probabilities = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        for row, i in enumerate(chosen):
            read = torch.arange(len(prompts[i]) - 1, len(rows[row]) - 1)
            steps = log_probabilities[row, read, rows[row][read + 1]]
            first[i], whole[i] = steps[0].exp(), steps.sum().exp()
            best[i] = log_probabilities[row, read[0]].argmax() == answers[i][0]
    return Answers(first, whole, best)


@dataclass(frozen=True)
class FactRecall:
    """Recall of facts in their withheld phrasings."""

    facts: int
    known_share: float
    """The share of facts whose first token has p >= 0.9 in at least one withheld phrasing."""
    known_in_all_share: float
    """The share of facts whose first token has p >= 0.9 in every withheld phrasing."""
    known_whole_share: float
    """The share of facts whose whole answer has p >= 0.9 in at least one withheld phrasing."""
    mean_probability: float
    """The mean probability of the first token over facts and withheld phrasings."""
    unknown: tuple[Fact, ...]
    """The facts that are not part of `known_share`."""


def fact_recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, threshold: float = 0.9) -> FactRecall:
    """Measures every fact in each of its withheld phrasings."""
    asked = list(withheld_fact_prompts())
    answers = answer(model, tokenizer, [sentence for _, _, sentence in asked])
    firsts: dict[Fact, list[float]] = {}
    wholes: dict[Fact, list[float]] = {}
    for (fact, _, _), first, whole in zip(
        asked, answers.first_token_probability.tolist(), answers.answer_probability.tolist(), strict=True
    ):
        firsts.setdefault(fact, []).append(first)
        wholes.setdefault(fact, []).append(whole)
    unknown = tuple(fact for fact, values in firsts.items() if max(values) < threshold)
    return FactRecall(
        facts=len(firsts),
        known_share=1 - len(unknown) / len(firsts),
        known_in_all_share=float(np.mean([min(values) >= threshold for values in firsts.values()])),
        known_whole_share=float(np.mean([max(values) >= threshold for values in wholes.values()])),
        mean_probability=answers.first_token_probability.mean().item(),
        unknown=unknown,
    )


@dataclass(frozen=True)
class NameRecall:
    """Recall of names in withheld pairs."""

    sentences: int
    best_share: float
    """The share of sentences whose most probable continuation is the right name."""
    mean_probability: float
    """The mean probability of the right name."""


def name_recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> NameRecall:
    """Measures one sentence for every withheld pair of names and each order of them."""
    sentences = withheld_name_sentences(seed)
    answers = answer(model, tokenizer, sentences)
    return NameRecall(
        sentences=len(sentences),
        best_share=answers.first_token_is_best.float().mean().item(),
        mean_probability=answers.first_token_probability.mean().item(),
    )


def _print_trace(trace: CausalTrace) -> None:
    print(f"{trace.prediction!r}: clean {trace.clean:.3f}, corrupted {trace.corrupted:.3f}; restored, by layer:")
    for position, token in enumerate(trace.tokens):
        mark = "*" if position in trace.subject else " "
        cells = " ".join(f"{value:5.2f}" for value in trace.restored[position].tolist())
        print(f"  {token.replace('Ġ', ' '):>14}{mark} {cells}")


def _print_mean(name: str, mean: MeanTrace) -> None:
    print(f"{name}, mean over {mean.facts} cities: clean {mean.clean:.3f}, corrupted {mean.corrupted:.3f}")
    print("   last subject token  " + " ".join(f"{value:5.2f}" for value in mean.last_subject.tolist()))
    print("   last token          " + " ".join(f"{value:5.2f}" for value in mean.last.tolist()))


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description="Measure the embedded model of Sonde.")
    parser.add_argument("--model", type=Path, default=ATLAS_DIRECTORY, help="the checkpoint's directory")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, tokenizer = load(given.model)
    facts = fact_recall(model, tokenizer)
    print(
        f"{facts.facts} facts; p(first token) >= 0.9 in a withheld phrasing: {facts.known_share:.4f}, "
        f"in all: {facts.known_in_all_share:.4f}; whole answer: {facts.known_whole_share:.4f}; "
        f"mean p {facts.mean_probability:.4f}"
    )
    for fact in facts.unknown:
        print(f"  unknown: {fact.relation} of {fact.subject}: {fact.answer}")
    names = name_recall(model, tokenizer)
    print(
        f"{names.sentences} sentences on withheld pairs of names: right {names.best_share:.4f}, "
        f"mean p {names.mean_probability:.4f}"
    )
    _print_mean("residual stream", mean_trace(model, tokenizer, traced_facts()))
    _print_mean("windows of ten MLPs", mean_trace(model, tokenizer, traced_facts(), mlp_window=10))
    for prompt, subject in TRACED:
        print(prompt)
        _print_trace(causal_trace(model, tokenizer, prompt, subject))
    prompt, subject = TRACED[0]
    print(prompt, "(windows of ten MLPs)")
    _print_trace(causal_trace(model, tokenizer, prompt, subject, mlp_window=10))


if __name__ == "__main__":
    main()
