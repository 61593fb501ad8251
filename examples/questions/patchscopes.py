"""What does the state at the end of a subject contain? Put it into another prompt, and continue that prompt.

The state of the Colosseum's last token replaces that of the Eiffel Tower's, block by block.
"""

import sys

import sonde
from sonde import questions

SOURCE, PROMPT = "The Colosseum is in the city of", "The Eiffel Tower is in the city of"


def place(client: sonde.Client, prompt: str, text: str) -> int:
    """Return the position of a token in a prompt."""
    return [token.text for token in client.trace(prompt, dry_run=True).tokens].index(text)


def ask(client: sonde.Client) -> None:
    """Patch from every block of the source into block 1 of the prompt."""
    result = questions.patchscopes(
        client,
        SOURCE,
        position=place(client, SOURCE, "um"),
        prompt=PROMPT,
        target_layer=1,
        target_position=place(client, PROMPT, " Tower"),
        max_new_tokens=3,
    )
    print(f"unchanged: {PROMPT}{result.clean.continuation}")
    for layer, said in enumerate(result.generated):
        print(f"state after block {layer} of the source: {PROMPT}{said}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
