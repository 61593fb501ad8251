"""Which token would the model predict after each block, at each position?"""

import sys

import sonde
from sonde import questions

PROMPT = "The Eiffel Tower is in the city of"


def ask(client: sonde.Client) -> None:
    """Print the table, with blocks upwards and tokens across."""
    print(questions.logit_lens(client, PROMPT))


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
