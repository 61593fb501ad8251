"""Which heads know who gets the drink? Patch each head's output between two prompts that differ in the giver.

A score of 1 means that the head restores the whole answer by itself, and 0 that it restores nothing.
"""

import sys

import sonde
from sonde import questions

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def ask(client: sonde.Client) -> None:
    """Patch every head at the last token."""
    found = questions.activation_patching(
        client, CLEAN, CORRUPTED, " Mary", " John", component="head_out", positions=[-1]
    )
    print(f"logit(Mary) - logit(John): {found.clean:.1f} clean, {found.corrupted:.1f} corrupted")
    for change in found.result.most_changed(3, by="logit"):
        score = found.scores.reshape(-1)[change.run]
        print(f"  layer {change.layer}, head {change.unit}: brings back {score:.2f}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
