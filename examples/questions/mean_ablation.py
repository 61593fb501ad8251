"""Which early heads does the answer need? Replace the output of each with its average over similar sentences."""

import sys

import sonde
from sonde import questions

PROMPT = "When Mary and John went to the store, John gave a drink to"
SENTENCES = [
    "When Anna and Tom went to the park, Tom gave a book to",
    "When Tom and Anna went to the park, Anna gave a book to",
    "When Laura and Bruce went to the store, Bruce gave a drink to",
]


def ask(client: sonde.Client) -> None:
    """Mean-ablate each head of the first blocks, one at a time."""
    heads = sonde.head(layer=range(3), unit=range(client.model.heads))
    result = questions.mean_ablation(client, PROMPT, SENTENCES, heads, separately=True, targets=[(" Mary", " John")])
    print(f"logit(Mary) - logit(John): {result.clean.logits[0]:.1f} unchanged")
    for change in result.most_changed(3, by="logit"):
        layer, head = divmod(change.run, client.model.heads)
        print(f"  mean of layer {layer}, head {head}: {result.logits[change.run, 0]:.1f}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
