"""Change the Eiffel Tower's city to Rome: add a direction to the residual stream while the model generates.

The direction is the mean difference between prompts about Rome and about Paris, at their last token.
"""

import sys

import sonde
from sonde import questions

PAIRS = [("The Colosseum is in the city of", "The Louvre is in the city of")]
PROMPT = "The Eiffel Tower is in the city of"


def ask(client: sonde.Client) -> None:
    """Steer after each block in turn, from the last token on."""
    last = len(client.trace(PROMPT, dry_run=True).tokens) - 1
    directions = questions.steering_vector(client, PAIRS)
    plan = [questions.steer(vector, layer=layer, from_position=last) for layer, vector in enumerate(directions)]
    result = client.intervene(PROMPT, plan, targets=[" Rome", " Paris"], generation=sonde.Generation(4))
    print(f"unchanged:{result.clean.continuation}")
    for layer, run in enumerate(result):
        rome, paris = run.probabilities
        print(f"steered after block {layer}:{run.continuation}   p(Rome) {rome:.3f}, p(Paris) {paris:.3f}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
