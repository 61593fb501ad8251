"""What speaks for Mary? Split the difference of two logits into the direct contributions of all heads and MLPs."""

import sys

import sonde
from sonde import questions

PROMPT = "When Mary and John went to the store, John gave a drink to"


def ask(client: sonde.Client) -> None:
    """Show the largest contributions, and that all contributions add up to the logit difference."""
    found = questions.direct_logit_attribution(client, PROMPT, (" Mary", " John"), heads=True)
    for name, share in found.strongest(6):
        print(f"  {name:10} {share:+.2f}")
    total = found.contributions.sum() + found.bias
    print(f"all {len(found.names)} parts and the bias: {total:.3f}; logit(Mary) - logit(John): {found.logit:.3f}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
