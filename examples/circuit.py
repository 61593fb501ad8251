"""Finds the heads that tell the embedded model who gets the drink, and shows that these heads are responsible.

"When Mary and John went to the store, John gave a drink to" continues with " Mary": the indirect object is the name
that occurs once (Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593). There are four steps, each with
a call or two for all sentences:

1. find: for all heads at once, attribution patching estimates the effect of replacing a head's output with that from
   the sentence with the other giver (Nanda 2023; Kramar et al. 2024, arXiv 2403.00745);
2. confirm: really patch every head, and compare;
3. break: set the few largest heads to zero, on sentences that the search did not use;
4. control: set the same number of other heads to zero, drawn at random, many times.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sonde

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = "Adam Alice Anna Brian Carol Daniel David Emma Frank George Grace Helen Henry Jane John Karen Kevin Laura"
TEMPLATES = (
    "When {a} and {b} went to the store, {giver} gave a drink to",
    "When {a} and {b} went to the school, {giver} gave a book to",
    "When {a} and {b} went to the park, {giver} gave a ring to",
)
SENTENCES = 12
CIRCUIT = 3
DRAWS = 10

Floats = npt.NDArray[np.float64]
Head = tuple[int, int]


@dataclass(frozen=True)
class Sentence:
    """A prompt, the prompt with the other giver, and the names that follow the first and the second of them."""

    clean: str
    corrupted: str
    answer: str
    wrong: str


@dataclass(frozen=True)
class Circuit:
    """The result. Heads are (layer, head)."""

    estimated: Floats
    """[layer, head]: the estimated share of the answer that a head restores."""
    measured: Floats
    """[layer, head]: the share measured by patching the head."""
    heads: list[Head]
    intact: float
    """The mean logit difference, answer minus other name, on sentences that the search did not use."""
    ablated: float
    """The same with the circuit's heads at zero."""
    controls: Floats
    """[draw]: the same with other heads at zero, as many as the circuit has."""
    right: tuple[float, float, float]
    """The share of those sentences in which the answer is more probable: intact, ablated, mean over the controls."""


def sentences(count: int, seed: int) -> list[Sentence]:
    """Make sentences about two names each. In every second sentence, the answer is the second name."""
    random = Random(seed)  # noqa: S311 - a choice of names, not a secret
    made = []
    for number in range(count):
        a, b = random.sample(NAMES.split(), 2)
        template = TEMPLATES[number % len(TEMPLATES)]
        giver, other = (b, a) if number % 2 else (a, b)
        clean, corrupted = (template.format(a=a, b=b, giver=name) for name in (giver, other))
        made.append(Sentence(clean, corrupted, f" {other}", f" {giver}"))
    return made


def cases(asked: Sequence[Sentence], *, corrupted: bool) -> sonde.Cases:
    """Return the sentences as a dataset. Into the corrupted ones, patches come from the clean ones."""
    return sonde.Cases(
        sonde.Case(
            one.corrupted if corrupted else one.clean,
            sources=[one.clean] if corrupted else [],
            targets=[(one.answer, one.wrong)],
        )
        for one in asked
    )


def difference(result: sonde.CasesResult[Any]) -> Floats:
    """Return the logit differences of the unchanged runs: [sentence]."""
    return np.array([float(one.prediction.logits[0]) for one in result])


def find(client: sonde.Client, asked: Sequence[Sentence]) -> Floats:
    """Estimate [layer, head]: (clean - corrupted) . gradient, as a share of what is lost; a mean over sentences."""
    found = client.trace(cases(asked, corrupted=True), method=sonde.AttributionPatching(components="head_out"))
    lost = difference(client.trace(cases(asked, corrupted=False))) - difference(found)
    shares = [one.estimates["head_out"][..., 0].astype(float).sum(axis=1) for one in found]
    mean: Floats = np.mean([share / whole for share, whole in zip(shares, lost, strict=True)], axis=0)
    return mean


def confirm(client: sonde.Client, asked: Sequence[Sentence]) -> Floats:
    """Measure the same by patching every head at all positions."""
    plan = sonde.sweep(sonde.patch(sonde.head(), 0), together="position")
    patched = client.intervene(cases(asked, corrupted=True), plan)
    low, high = difference(patched), difference(client.trace(cases(asked, corrupted=False)))
    logits: Floats = patched.logits[:, :, :, 0, 0].astype(float)
    mean: Floats = np.mean((logits - low[:, None, None]) / (high - low)[:, None, None], axis=0)
    return mean


def differences(client: sonde.Client, asked: Sequence[Sentence], groups: Sequence[Sequence[Head]]) -> Floats:
    """Return logit differences [sentence, 1 + groups]: intact, then with each group of heads at zero."""
    runs = [[sonde.scale(sonde.head(layer=layer, unit=unit), 0.0) for layer, unit in heads] for heads in groups]
    result = client.intervene(cases(asked, corrupted=False), runs)
    changed: Floats = result.logits[:, :, 0].astype(float)
    return np.concatenate([difference(result)[:, None], changed], axis=1)


def circuit(client: sonde.Client) -> Circuit:
    """Run all four steps."""
    seen, unseen = sentences(SENTENCES, seed=1), sentences(2 * SENTENCES, seed=2)
    estimated, measured = find(client, seen), confirm(client, seen)
    everything = [(layer, unit) for layer in range(estimated.shape[0]) for unit in range(estimated.shape[1])]
    heads = sorted(everything, key=lambda head: -estimated[head])[:CIRCUIT]
    others = [head for head in everything if head not in heads]
    random = Random(3)  # noqa: S311 - likewise
    drawn = [random.sample(others, CIRCUIT) for _ in range(DRAWS)]
    found = differences(client, unseen, [heads, *drawn])
    means, right = found.mean(axis=0), (found > 0).mean(axis=0)
    shares = float(right[0]), float(right[1]), float(right[2:].mean())
    return Circuit(estimated, measured, heads, float(means[0]), float(means[1]), means[2:], shares)


def draw(found: Circuit, path: Path) -> "Figure":
    """Draw the estimates beside the measurements, and the effect of ablation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    image = left.imshow(found.measured, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    left.set(title="share of the answer brought back", xlabel="head", ylabel="block")
    left.set_xticks(range(found.measured.shape[1]))
    figure.colorbar(image, ax=left)
    middle.axline((0, 0), slope=1, color="0.7", linewidth=1)
    middle.scatter(found.estimated, found.measured, s=18, color="tab:blue")
    for head in found.heads:
        middle.annotate(
            f"{head[0]}:{head[1]}", (found.estimated[head], found.measured[head]), (-24, -3), textcoords="offset points"
        )
    middle.set(title="each head", xlabel="estimated (attribution patching)", ylabel="measured (patched)")
    bars = right.bar(
        ["intact", f"{CIRCUIT} found\nat zero", f"{CIRCUIT} others\nat zero"],
        [found.intact, found.ablated, found.controls.mean()],
        color=["0.6", "tab:red", "tab:blue"],
    )
    right.errorbar(
        bars[2].get_x() + bars[2].get_width() / 2, found.controls.mean(), found.controls.std(), color="black"
    )
    right.axhline(0, color="0.3", linewidth=0.8)
    right.set(title="answer less other name, logits")
    figure.savefig(path, dpi=120)
    return figure


def ask(client: sonde.Client, path: Path | None = None) -> Circuit:
    """Find the circuit and print the result."""
    found = circuit(client)
    names = ", ".join(f"{layer}:{unit}" for layer, unit in found.heads)
    print(f"heads found (block:head): {names}")
    for head in found.heads:
        print(f"  {head[0]}:{head[1]}  estimated {found.estimated[head]:+.2f}, patched {found.measured[head]:+.2f}")
    print(f"logit of the answer less the other name, on new sentences: {found.intact:.1f}")
    print(f"  with these heads at zero {found.ablated:.1f}, with as many others {found.controls.mean():.1f}")
    intact, without, control = found.right
    print(f"answer likelier in {intact:.0%}; {without:.0%} without these heads, {control:.0%} without others")
    if path is not None:
        draw(found, path)
    return found


if __name__ == "__main__":
    with sonde.Client(*sys.argv[1:2]) as client:
        ask(client, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
