"""Trains the tokenizer of the embedded model: a small byte-level BPE in which most answers are single tokens."""

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .corpus import facts
from .names import FIRST_NAMES, PLACES, THINGS
from .phrasings import FACT_PHRASINGS, LEAD_INS, NAME_TEMPLATES

VOCABULARY_SIZE = 2048
BEGIN, END, PADDING = "<s>", "</s>", "<pad>"
BEGIN_ID, END_ID, PADDING_ID = 0, 1, 2

_PHRASING_WEIGHT = 40
_NAME_WEIGHT = 100
_ANSWER_WEIGHT = 4
_TOWN_WEIGHT = 6


def _texts() -> Iterator[str]:
    """The texts that the merges are learned from.

    Their weights decide how the small vocabulary is used: first for the words of the phrasings and for first names,
    then for the answers, so that most targets are one token. Subjects come last and remain several tokens each, which
    makes a trace over the tokens of a subject worth looking at.
    """
    blank = dict.fromkeys(("subject", "first", "second", "giver", "place", "thing"), "")
    for phrasing in (*(text for texts in FACT_PHRASINGS.values() for text in texts), *LEAD_INS, *NAME_TEMPLATES):
        text = phrasing.format(**blank)
        for _ in range(_PHRASING_WEIGHT):
            yield text
            yield text[:1].upper() + text[1:]
    for word in (*FIRST_NAMES, *PLACES, *THINGS):
        yield from [f" {word}"] * _NAME_WEIGHT
    for fact in facts():
        weight = _TOWN_WEIGHT if fact.relation in ("city", "capital") else _ANSWER_WEIGHT
        yield from [f" {fact.answer}"] * weight
        yield f" {fact.subject}"


def train_tokenizer() -> Tokenizer:
    """The tokenizer, which puts `BEGIN` before every text. It depends only on the data files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BEGIN, END, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer
