"""Which heads reach the answer by a direct path? Patch each along the paths to the logits, over pairs of sentences."""

import sys

import sonde
from sonde import questions

NAMES = [("Mary", "John"), ("Alice", "Carl"), ("Emma", "Ben"), ("Tom", "Anna")]
SENTENCE = "When {} and {} went to the store, {} gave a drink to"


def ask(client: sonde.Client) -> None:
    """Change who gives, head by head: seen by the logits alone, then through the MLPs too."""
    pairs = sonde.Cases(
        sonde.Case(SENTENCE.format(a, b, b), sources=[SENTENCE.format(a, b, a)], targets=[(f" {a}", f" {b}")])
        for a, b in NAMES
    )
    for name, through in {"the logits alone": (), "the logits and the MLPs": sonde.site("mlp_out")}.items():
        found = questions.path_patching(client, pairs, sonde.site("logits"), through=through)
        print(f"seen by {name}, of {found.clean:.1f}:")
        for layer, head, effect in found.strongest(3):
            print(f"  head {layer}.{head}: {effect:+.2f}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
