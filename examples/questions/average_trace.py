"""Where are facts stored, on average? Trace many prompts, and average by the kind of token.

If the second argument names a file, the script draws the figure there.
"""

import sys

import sonde
from sonde import questions

LANDMARKS = {
    "The Eiffel Tower": " Paris",
    "The Louvre": " Paris",
    "The Colosseum": " Rome",
    "Big Ben": " London",
}


def ask(client: sonde.Client, picture: str | None = None) -> None:
    """Trace every prompt, and show the average indirect effect of each kind of token, by layer."""
    cases = [
        sonde.Case(f"{name} is in the city of", targets=city, spans={"subject": name})
        for name, city in LANDMARKS.items()
    ]
    found = questions.average_causal_trace(client, cases, method=sonde.CausalTracing(samples=5, window=3))
    used = int(found.used.sum())
    print(f"{used} of {len(cases)} prompts: {found.clean:.3f} clean, {found.corrupted:.3f} corrupted")
    for name, count, effects in zip(questions.TOKEN_CLASSES, found.counts, found.effects["residual_post"], strict=True):
        print(f"{name:24}{count:3}  {'  '.join(f'{effect:+.2f}' for effect in effects)}")
    if picture is not None:
        found.plot(picture)


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client, *sys.argv[2:3])
