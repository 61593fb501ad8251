"""What would the model say next after every block, at every position?"""

import sys

import sonde
from sonde import questions

PROMPT = "The Eiffel Tower is in the city of"


def ask(client: sonde.Client) -> None:
    """The table: blocks upwards, tokens across."""
    print(questions.logit_lens(client, PROMPT))


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client)
