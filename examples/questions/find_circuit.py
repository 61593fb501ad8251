"""Which edges carry the answer? Order all of them by attribution, then run the first ones alone."""

import sys

import sonde
from sonde import questions

PROMPT = "When {a} and {b} went to the store, {giver} gave a drink to"


def ask(client: sonde.Client) -> None:
    """Measure how faithful circuits of growing size are, all else coming from the sentence with the other giver."""
    pair = sonde.Case(
        PROMPT.format(a="Mary", b="John", giver="John"),
        sources=[PROMPT.format(a="Mary", b="John", giver="Mary")],
        targets=[(" Mary", " John")],
    )
    found = questions.find_circuit(client, sonde.Cases([pair]), method="eap", sizes=[0, 100, 300, 1000])
    print(f"{len(found.edges)} edges; the first is {found.edges[0]}")
    for size, share in zip([0, 100, 300, 1000], found.faithfulness, strict=True):
        print(f"  {size:5} edges alone: {share:.2f} of the answer")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
