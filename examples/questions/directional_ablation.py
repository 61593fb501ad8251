"""Remove Paris from the model: ablate one direction in everything that writes to the residual stream.

The direction is the mean difference between prompts that end in Paris and others, late in the model. Unrelated answers
do not change.
"""

import sys

import sonde
from sonde import questions

PAIRS = [
    ("The Eiffel Tower is in the city of", "The Colosseum is in the city of"),
    ("The Louvre is in the city of", "Big Ben is in the city of"),
    ("The capital of France is", "The capital of Japan is"),
]


def ask(client: sonde.Client) -> None:
    """Show how each prompt continues without the direction, and the probability of its own answer."""
    layers = client.model.layers
    (direction,) = questions.steering_vector(client, PAIRS, layers=[layers - 2])
    ablation = questions.directional_ablation(direction, layers)
    for prompt in ("The Eiffel Tower is in the city of", "The Colosseum is in the city of"):
        result = client.intervene(prompt, [ablation], generation=sonde.Generation(3))
        run = result[0]
        print(f"{prompt}{result.clean.continuation}  becomes {run.continuation}")
        print(
            f"  p({result.targets[0].text.strip()}) {result.clean.probabilities[0]:.3f} -> {run.probabilities[0]:.3f}"
        )


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
