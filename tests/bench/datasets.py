"""Datasets that studies use, from templates: pairs for indirect object identification, facts, and sentences.

Everything is text, drawn from a number: another number gives other examples, so nothing is cached when asked.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

# Single tokens of SmolLM2's vocabulary, after a space.
NAMES = (
    "Mary", "John", "Tom", "James", "Sarah", "Anna", "Paul", "Mark", "Kate", "Lisa", "David", "Emily", "Robert",
    "Michael", "Laura", "Peter", "Susan", "Alice", "Jack", "Emma", "Adam", "Simon", "Helen", "Julia", "Brian", "Kevin",
    "Rachel", "Karen", "Jane", "Alex", "Chris", "Andrew", "Daniel", "Scott", "Steve", "Jason", "Linda", "Martin",
    "Charles", "George", "William", "Thomas", "Henry", "Frank",
)  # fmt: skip
# After Wang et al. 2022 (arXiv 2211.00593); A is named first. The prompts differ in length.
INDIRECT_OBJECTS = (
    "When {a} and {b} went to the {place}, {subject} gave a {object} to",
    "Then, {a} and {b} went to the {place}. {subject} gave a {object} to",
    "After {a} and {b} had been working at the {place} all day long, {subject} decided to give a {object} to",
    "While {a} and {b} were walking to the {place}, {subject} handed a {object} to",
    "{a} and {b} were at the {place} together. Afterwards {subject} passed a {object} to",
)
PLACES = ("store", "school", "office", "garden", "station", "hospital", "restaurant", "house")
OBJECTS = ("drink", "book", "ring", "ball", "letter", "key", "picture", "basket")
FACTS = (
    "{landmark} is in the city of",
    "{landmark} is located in the city of",
    "The city where you find {landmark} is",
)
SUBJECTS = ("The old captain", "A young teacher", "My neighbour", "The committee", "Every student", "The company")
VERBS = ("found", "described", "sold", "painted", "remembered", "avoided", "repaired", "studied")
THINGS = ("the red lighthouse", "a small boat", "the report", "an old map", "two violins", "the bridge", "a new theory")
TAILS = (
    ".", " last summer.", " before the storm reached the coast.", " and told nobody about it for a very long time.",
    " because the road to the village had been closed since the beginning of the week, as it often is in winter.",
    ", although most of those who had been there said later that they could not remember anything of the kind at all.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PairText:
    """A prompt, and the same with the other name as the subject, so that the answers change places."""

    prompt: str
    source: str
    indirect_object: str
    subject: str


@dataclass(frozen=True, slots=True)
class FactText:
    """What is said of a landmark, and the city that follows."""

    prompt: str
    landmark: str
    city: str


def pairs(count: int, number: int) -> Iterator[PairText]:
    """Draws pairs whose prompt and source have as many tokens as each other."""
    drawn = np.random.RandomState(20_000 + number)
    for _ in range(count):
        template = INDIRECT_OBJECTS[drawn.randint(len(INDIRECT_OBJECTS))]
        first, second = (NAMES[int(index)] for index in drawn.choice(len(NAMES), 2, replace=False))
        place, thing = PLACES[drawn.randint(len(PLACES))], OBJECTS[drawn.randint(len(OBJECTS))]
        # Either order of names, as often as the other.
        subject, other = (first, second) if drawn.randint(2) else (second, first)
        prompt, source = (
            template.format(a=first, b=second, subject=name, place=place, object=thing) for name in (subject, other)
        )
        yield PairText(prompt, source, other, subject)


def facts(count: int, number: int) -> Iterator[FactText]:
    """Draws facts about landmarks, each landmark once."""
    with (files("sonde_server.builtin") / "landmarks.csv").open(encoding="utf-8") as file:
        known = [(row["landmark"], row["city"]) for row in csv.DictReader(file)]
    drawn = np.random.RandomState(30_000 + number)
    for index in drawn.choice(len(known), count, replace=False):
        landmark, city = known[int(index)]
        template = FACTS[drawn.randint(len(FACTS))]
        prompt = template.format(landmark=landmark)
        yield FactText(prompt[0].upper() + prompt[1:], landmark, city)


def sentences(count: int, number: int) -> Iterator[str]:
    """Draws sentences of unequal length."""
    drawn = np.random.RandomState(40_000 + number)
    for _ in range(count):
        parts = (each[drawn.randint(len(each))] for each in (SUBJECTS, VERBS, THINGS, TAILS))
        subject, verb, thing, tail = parts
        yield f"{subject} {verb} {thing}{tail}"
