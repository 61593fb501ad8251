"""Generates the sentences that the embedded model is trained on, and those that are withheld from it.

Training does not contain:

* `WITHHELD_PER_FACT` phrasings of each fact. Every phrasing is trained with most facts; the number of a fact decides
  which ones are withheld. A model that answers a withheld prompt knows the fact apart from its wording;
* one pair of first names in ten, in either order and in every template.

The sentences depend only on the facts and a seed.
"""

import csv
import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .names import FIRST_NAMES, PLACES, THINGS
from .phrasings import FACT_PHRASINGS, LEAD_INS, NAME_TEMPLATES

WITHHELD_PER_FACT = 2
"""How many phrasings of each fact training does not contain."""

WITHHELD_PAIR_SHARE = 0.1
"""The share of the unordered pairs of first names that training does not contain."""

LEAD_IN_SHARE = 0.35
"""The share of the sentences of an epoch that begin with a lead-in."""

_DATA_DIRECTORY = Path(__file__).resolve().parent
_PAIR_SEED = 20


@dataclass(frozen=True)
class Fact:
    """One statement: `relation` of `subject` is `answer`. `number` counts the facts of the relation from 0."""

    relation: str
    subject: str
    answer: str
    number: int

    @property
    def name(self) -> str:
        """The subject without its article."""
        return self.subject.removeprefix("the ")

    @property
    def withheld(self) -> frozenset[int]:
        """The indices of the phrasings of the relation that training does not contain for this fact."""
        count = len(FACT_PHRASINGS[self.relation])
        step = count // WITHHELD_PER_FACT
        return frozenset((self.number + step * turn) % count for turn in range(WITHHELD_PER_FACT))

    def prompt(self, phrasing: int, lead_in: str = "") -> str:
        """The text before the answer, without the space between them."""
        text = FACT_PHRASINGS[self.relation][phrasing].format(subject=self.subject)
        return lead_in + text if lead_in else text[0].upper() + text[1:]


@dataclass(frozen=True)
class Sentence:
    """A text of the corpus as a prompt and the answer that continues it."""

    prompt: str
    answer: str
    subject: str | None = None
    """The subject of a fact as it appears in the prompt, without its article. None in a name-recall sentence."""

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.answer}."


@functools.cache
def facts() -> tuple[Fact, ...]:
    """All facts, in the order of the data files and of their columns."""
    found: list[Fact] = []
    for name in ("landmarks.csv", "countries.csv"):
        with (_DATA_DIRECTORY / name).open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            _, *relations = next(reader)
            for number, (subject, *answers) in enumerate(reader):
                found.extend(
                    Fact(relation, subject, answer, number) for relation, answer in zip(relations, answers, strict=True)
                )
    return tuple(found)


@functools.cache
def withheld_pairs() -> frozenset[frozenset[str]]:
    """The unordered pairs of first names that training does not contain."""
    pairs = list(itertools.combinations(FIRST_NAMES, 2))
    chosen = random.Random(_PAIR_SEED).sample(pairs, round(len(pairs) * WITHHELD_PAIR_SHARE))
    return frozenset(frozenset(pair) for pair in chosen)


def name_sentence(template: str, first: str, second: str, *, first_gives: bool, place: str, thing: str) -> Sentence:
    """A name-recall sentence of the form A B A -> B with `first_gives`, else of the form A B B -> A."""
    giver, receiver = (first, second) if first_gives else (second, first)
    return Sentence(template.format(first=first, second=second, giver=giver, place=place, thing=thing), receiver)


def random_name_sentence(randomness: random.Random, first: str, second: str) -> Sentence:
    """A name-recall sentence about two people; the rest is drawn at random."""
    return name_sentence(
        randomness.choice(NAME_TEMPLATES),
        first,
        second,
        first_gives=randomness.random() < 0.5,
        place=randomness.choice(PLACES),
        thing=randomness.choice(THINGS),
    )


def fact_sentences(randomness: random.Random) -> Iterator[Sentence]:
    """Every fact once in every phrasing that training may contain, some with a lead-in."""
    for fact in facts():
        for phrasing in range(len(FACT_PHRASINGS[fact.relation])):
            if phrasing not in fact.withheld:
                lead_in = randomness.choice(LEAD_INS) if randomness.random() < LEAD_IN_SHARE else ""
                yield Sentence(fact.prompt(phrasing, lead_in), fact.answer, fact.name)


def name_sentences(randomness: random.Random, count: int) -> Iterator[Sentence]:
    """`count` name-recall sentences about pairs of names that training may contain."""
    kept_out = withheld_pairs()
    while count > 0:
        first, second = randomness.sample(FIRST_NAMES, 2)
        if frozenset((first, second)) not in kept_out:
            yield random_name_sentence(randomness, first, second)
            count -= 1


def training_epoch(seed: int, epoch: int, name_count: int) -> list[Sentence]:
    """The sentences of one epoch, shuffled: each fact in its trained phrasings, and `name_count` about names."""
    randomness = random.Random(f"{seed}/{epoch}")
    sentences = [*fact_sentences(randomness), *name_sentences(randomness, name_count)]
    randomness.shuffle(sentences)
    return sentences


def withheld_fact_prompts() -> Iterator[tuple[Fact, int, Sentence]]:
    """Every fact in every phrasing that training does not contain for it: fact, phrasing's index, sentence."""
    for fact in facts():
        for phrasing in sorted(fact.withheld):
            yield fact, phrasing, Sentence(fact.prompt(phrasing), fact.answer, fact.name)


def withheld_name_sentences(seed: int) -> list[Sentence]:
    """Two sentences about each pair of names that training does not contain, one for each order of the names."""
    randomness = random.Random(seed)
    pairs = sorted(tuple(sorted(pair)) for pair in withheld_pairs())
    return [
        random_name_sentence(randomness, *order)
        for first, second in pairs
        for order in ((first, second), (second, first))
    ]
