"""When does the last token read the subject? Block its attention to the subject, in a few layers at a time.

If the answer's probability falls, the fact moves in those layers.
"""

import sys

import sonde
from sonde import questions

PROMPT = "The Eiffel Tower is in the city of"
SUBJECT = " Eiffel Tower"


def ask(client: sonde.Client) -> None:
    """Block attention from the last token to the subject, and to everything else, in windows of 3 layers."""
    tokens = client.trace(PROMPT, dry_run=True).tokens
    subject = [p for p, token in enumerate(tokens) if token.text and token.text in SUBJECT]
    rest = [p for p in range(len(tokens) - 1) if p not in subject]
    for name, keys in (("the subject", subject), ("all else", rest)):
        found = questions.attention_knockout(client, PROMPT, keys, target=" Paris", window=3)
        changes = "  ".join(f"{change:+6.1f} %" for change in found.changes)
        print(f"without {name:12}{changes}")
    print(f"{'around block':20}{'  '.join(f'{layer:8}' for layer in found.layers)}")


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
