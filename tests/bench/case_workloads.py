"""What is asked of a dataset. Every contender gets the same cases, as token ids, and gives the same array.

W6  each pair's heads, patched one at a time at the last token from the pair's own source: mean logit difference
W7  the residual stream at the last token of every sentence, as bfloat16
W8  the average causal trace of facts: three components, by role of token
W9  continuations under a steering vector: the log-probabilities of the tokens that were taken
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from tests.bench import datasets

Case = TypeVar("Case")

SAMPLES, WINDOW, DEVIATIONS = 10, 10, 3.0
NEW_TOKENS = 32
COMPONENTS = ("residual_post", "mlp_out", "attention_out")
ROLES = ("first", "middle", "last", "next", "further", "end")
"""Of figure 2 of Meng et al. 2022: three of the subject, what follows it, and the last token."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair of W6."""

    tokens: tuple[int, ...]
    source: tuple[int, ...]
    target: int
    contrast: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """W6: mean logit difference by head, [layers, heads]."""

    cases: tuple[Pair, ...]
    layers: tuple[int, ...]
    heads: int

    def __len__(self) -> int:
        return len(self.cases) * len(self.layers)

    def share(self, count: int) -> "Pairs":
        """About `count` of its pairs x layers: fewer pairs, and fewer layers of one pair."""
        return replace(self, cases=fewer(self.cases, count // len(self.layers)), layers=_spread(self.layers, count))


@dataclass(frozen=True, slots=True)
class Sentences:
    """W7: [sentences, layers, D]."""

    cases: tuple[tuple[int, ...], ...]
    layers: int

    def __len__(self) -> int:
        return len(self.cases)

    def share(self, count: int) -> "Sentences":
        """`count` of its sentences."""
        return replace(self, cases=fewer(self.cases, count))


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of W8."""

    tokens: tuple[int, ...]
    subject: tuple[int, ...]
    """Positions, one after the other."""
    target: int

    @property
    def roles(self) -> list[list[int]]:
        """Positions by role (ROLES). A position may have two."""
        first, last, end = self.subject[0], self.subject[-1], len(self.tokens) - 1
        following = list(range(last + 1, end + 1))
        return [[first], list(self.subject[1:-1]), [last], following[:1], following[1:-1], [end]]


@dataclass(frozen=True, slots=True)
class Facts:
    """W8: probability with one state restored, mean over samples and facts, [roles, layers, components]."""

    cases: tuple[Fact, ...]
    layers: tuple[int, ...]
    """At which states are restored; for two components the centres of windows."""
    depth: int
    standard_deviation: float
    samples: int = SAMPLES
    window: int = WINDOW

    def __len__(self) -> int:
        return len(self.cases) * len(self.layers)

    def share(self, count: int) -> "Facts":
        """About `count` of its facts x layers: fewer facts, and fewer layers of one fact."""
        return replace(self, cases=fewer(self.cases, count // len(self.layers)), layers=_spread(self.layers, count))

    def noise(self, fact: Fact, hidden_size: int) -> npt.NDArray[np.float32]:
        """[samples, subject, D]: ROME's own draw, RandomState(1)."""
        drawn = np.random.RandomState(1).randn(self.samples, len(fact.subject), hidden_size)
        return (drawn * self.standard_deviation).astype(np.float32)

    def restored(self, component: str, layer: int) -> range:
        """The layers that are restored together for a cell at `layer`."""
        if component == "residual_post":
            return range(layer, layer + 1)
        return range(max(0, layer - self.window // 2), min(self.depth, layer + (self.window + 1) // 2))

    def averaged(self, grids: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """The answer, from each fact's grid [positions, layers, components]. Every position of a role counts once."""
        sums = np.zeros((len(ROLES), *grids[0].shape[1:]))
        counts = np.zeros((len(ROLES), 1, 1))
        for fact, grid in zip(self.cases, grids, strict=True):
            for role, positions in enumerate(fact.roles):
                sums[role] += grid[positions].sum(0)
                counts[role] += len(positions)
        # A role that no fact has says nothing.
        averages: npt.NDArray[np.float64] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return averages


@dataclass(frozen=True, slots=True)
class Continuations:
    """W9: [continuations, new tokens]."""

    cases: tuple[tuple[int, ...], ...]
    layer: int
    vector: tuple[float, ...]
    """Added to the residual stream that leaves the layer, at every position."""
    new_tokens: int = NEW_TOKENS

    def __len__(self) -> int:
        return len(self.cases)

    def share(self, count: int) -> "Continuations":
        """`count` of its continuations."""
        return replace(self, cases=fewer(self.cases, count))


CaseWorkload: TypeAlias = Pairs | Sentences | Facts | Continuations
CASE_NAMES = ("W6", "W7", "W8", "W9")
COUNTS = {"W6": 100, "W7": 1000, "W8": 50, "W9": 64}
QUICK_COUNTS = {"W6": 10, "W7": 200, "W8": 2, "W9": 16}
# Of the spread of what is compared. W7 keeps eight bits, so a value that lies between two may be rounded to either.
TOLERANCES = {"W6": 5e-4, "W7": 1e-3, "W8": 5e-4, "W9": 5e-4, "W10": 5e-4, "W11": 5e-4, "W12": 5e-4}


def compared(name: str, answer: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What contenders have to agree on: the answer, or of W7 about the logarithms of its values.

    A few of them are hundreds of times as large as the others, and would hide differences of all the others.
    """
    return np.arcsinh(answer) if name == "W7" else answer


@dataclass(frozen=True, slots=True)
class Subject:
    """What the workloads take from the model."""

    tokenizer: PreTrainedTokenizerBase
    layers: int
    heads: int
    key_value_heads: int
    hidden_size: int
    embedding_deviation: float

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, without special ones."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def first(self, text: str) -> int:
        """The first token of what follows a prompt."""
        return self.ids(f" {text}")[0]


def make(name: str, of: Subject, count: int, number: int) -> CaseWorkload:
    """The workload of this name, with so many cases, drawn from a number."""
    layers = tuple(range(of.layers))
    match name:
        case "W6":
            return Pairs(
                tuple(
                    Pair(of.ids(one.prompt), of.ids(one.source), of.first(one.indirect_object), of.first(one.subject))
                    for one in datasets.pairs(count, number)
                ),
                layers,
                of.heads,
            )
        case "W7":
            return Sentences(tuple(of.ids(text) for text in datasets.sentences(count, number)), of.layers)
        case "W8":
            cases = tuple(_fact(of, one) for one in datasets.facts(count, number))
            return Facts(cases, layers, of.layers, DEVIATIONS * of.embedding_deviation)
        case "W9":
            drawn = np.random.RandomState(50_000 + number).randn(of.hidden_size)
            vector = tuple(float(value) for value in (2.0 * drawn).astype(np.float32))
            # Without the full stop, so that there is something to say.
            texts = (text.removesuffix(".") for text in datasets.sentences(count, 500 + number))
            return Continuations(tuple(of.ids(text) for text in texts), of.layers // 2, vector)
    raise ValueError(f"{name!r} is none of {', '.join(CASE_NAMES)}")


def _fact(of: Subject, one: datasets.FactText) -> Fact:
    encoded = of.tokenizer(one.prompt, add_special_tokens=False, return_offsets_mapping=True)
    start = one.prompt.lower().index(one.landmark.lower())
    end = start + len(one.landmark)
    subject = [position for position, (low, high) in enumerate(encoded["offset_mapping"]) if low < end and high > start]
    return Fact(tuple(encoded["input_ids"]), tuple(subject), of.first(one.city))


def fewer(cases: tuple[Case, ...], count: int) -> tuple[Case, ...]:
    """`count` of them, evenly apart, but at least one."""
    return _spread(cases, max(1, count))


def _spread(values: tuple[Case, ...], count: int) -> tuple[Case, ...]:
    """`count` of them, evenly apart, or all."""
    if count >= len(values):
        return values
    # In the middle of as many equal parts, so that one alone is neither the first nor the last.
    return tuple(values[int((number + 0.5) * len(values) / count)] for number in range(count))
