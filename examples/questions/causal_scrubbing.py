"""Is an explanation right? Take from other sentences what, by a hypothesis, does not matter."""

import itertools
import sys

import sonde
from sonde import questions

NAMES = ["Mary", "John", "Alice", "Carl"]


def ask(client: sonde.Client) -> None:
    """Compare two hypotheses about three heads at the last token: they tell the giver, or they tell the answer."""
    sentences = [(a, b, giver) for a, b in itertools.permutations(NAMES, 2) for giver in (a, b)]
    answers = [b if giver == a else a for a, b, giver in sentences]
    examples = sonde.Cases(
        sonde.Case(
            f"When {a} and {b} went to the store, {giver} gave a drink to", targets=[(f" {answer}", f" {giver}")]
        )
        for (a, b, giver), answer in zip(sentences, answers, strict=True)
    )
    heads = sonde.head(layer=0, unit=[1, 4, 6], position=-1)
    pairs = [frozenset((a, b)) for a, b, _ in sentences]
    labels = {"the giver": [giver for _, _, giver in sentences], "the answer": answers}
    for name, told in labels.items():
        hypothesis = sonde.prediction(other_labels=pairs, inputs=[sonde.claim(heads, labels=told)])
        result = questions.causal_scrubbing(client, examples, hypothesis, samples=4, seed=1)
        print(f"the heads tell {name}: {result}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
