"""The largest activations over a dataset: which cases, and where in them, excite a unit most."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sonde._answers.predictions import Token
from sonde._arrays import Floats, Integers, visible

_AROUND: Final = 12
"""How many tokens before and after the marked one are shown."""


@dataclass(frozen=True, slots=True)
class Example:
    """One of the largest values of a unit, and where it is."""

    value: float
    case: int
    position: int
    text: str
    """The case's prompt."""
    tokens: tuple[Token, ...] = ()
    """Its tokens, if they are known."""

    @property
    def marked(self) -> str:
        """The text around the position, with its token in «»; the whole prompt if its tokens are not known."""
        if not self.tokens:
            return f"{visible(self.text)} (position {self.position})"
        start, end = max(0, self.position - _AROUND), self.position + _AROUND + 1
        texts = [visible(token.text) for token in self.tokens]
        before, after = "".join(texts[start : self.position]), "".join(texts[self.position + 1 : end])
        return f"{'…' if start else ''}{before}«{texts[self.position]}»{after}{'…' if end < len(texts) else ''}"

    def __repr__(self) -> str:
        return f"{self.value:.4g} in case {self.case}: {self.marked}"


@dataclass(frozen=True, slots=True)
class Ranked:
    """The largest values at one site and layer: [row, unit, k], the largest first. Without one, the case is -1."""

    values: Floats
    cases: Integers
    """The case of each value, by its index in the dataset."""
    positions: Integers
    """Its position, counted from 0; where positions are pooled, the first of the row."""

    def joined(self, other: "Ranked", count: int) -> "Ranked":
        """The largest of both, of two parts of a dataset; of equal values, the first part's come first."""
        values = np.concatenate([self.values, other.values], -1)
        cases = np.concatenate([self.cases, other.cases], -1)
        positions = np.concatenate([self.positions, other.positions], -1)
        size = np.where(cases < 0, -np.inf, values)
        order = np.argsort(-size, axis=-1, kind="stable")[..., :count]
        return Ranked(
            np.take_along_axis(values, order, -1),
            np.take_along_axis(cases, order, -1),
            np.take_along_axis(positions, order, -1),
        )


@dataclass(frozen=True, eq=False, repr=False)
class LargestActivations:
    """The largest activations of each unit over the cases, and where they are.

    result.largest.examples(layer=3, unit=17, tokenize=client.tokenize)
    """

    ranked: Mapping[str, Ranked]
    """By run, site and layer, as `"-1.0.3"`: layer 3 of the first site, in the unchanged run (-1)."""
    texts: tuple[str, ...]
    """The prompts of the cases."""
    prompts: tuple[Any, ...] = field(default=(), metadata={"saved": False})
    """The prompts as they were given, for `tokenize`; a result that was loaded from a file has only their texts."""

    def of(self, *, layer: int = 0, site: int = 0, run: int = -1) -> Ranked:
        """The largest values at one layer of a site, by the site's index in the request.

        Raises:
            ValueError: if there are none; the message lists what there is.
        """
        found = self.ranked.get(f"{run}.{site}.{layer}")
        if found is None:
            there = ", ".join("run {}, site {}, layer {}".format(*name.rsplit(".", 2)) for name in self.ranked)
            message = f"no values of run {run}, site {site}, layer {layer}; there are: {there}"
            raise ValueError(message)
        return found

    def examples(
        self,
        *,
        unit: int | tuple[int, ...],
        layer: int = 0,
        site: int = 0,
        row: int = 0,
        run: int = -1,
        tokenize: Callable[[Any], Any] | None = None,
    ) -> list[Example]:
        """The cases in which a unit is largest, the largest first.

        Args:
            unit: the unit, by its index among those that were read, which is its number if all were; of heads, (head,
                entry).
            layer: the layer.
            site: the site's index in the request.
            row: the row of positions.
            run: the run; -1 is the unchanged one.
            tokenize: `client.tokenize`, to mark the token at the position; without it, only its number is known.

        Raises:
            ValueError: if there are no values of this layer, site and run.
            IndexError: if there are fewer rows or units.
        """
        ranked = self.of(layer=layer, site=site, run=run)
        place = (row, *(unit if isinstance(unit, tuple) else (unit,)))
        sizes = ranked.values.shape[:-1]
        if len(place) != len(sizes) or not all(-size <= i < size for i, size in zip(place, sizes, strict=True)):
            message = f"expected indices into [row, unit...] of shape {list(sizes)}, got {list(place)}"
            raise IndexError(f"{message}; a unit is counted among those that were read")
        found = []
        for value, case, position in zip(
            ranked.values[place], ranked.cases[place], ranked.positions[place], strict=True
        ):
            if case >= 0:
                prompt = self.prompts[case] if case < len(self.prompts) else self.texts[case]
                tokens = () if tokenize is None else tuple(tokenize(prompt).tokens)
                found.append(Example(float(value), int(case), int(position), self.texts[int(case)], tokens))
        return found

    def __repr__(self) -> str:
        sizes = {one.values.shape for one in self.ranked.values()}
        return f"LargestActivations({len(self.ranked)} layers of {', '.join(str(list(size)) for size in sizes)})"


def merged(first: LargestActivations, second: LargestActivations, count: int) -> LargestActivations:
    """The largest values of two parts of a dataset."""
    names: Sequence[str] = list(dict.fromkeys([*first.ranked, *second.ranked]))
    ranked = {}
    for name in names:
        one, other = first.ranked.get(name), second.ranked.get(name)
        known = one or other
        assert known is not None
        ranked[name] = one.joined(other, count) if one is not None and other is not None else known
    return LargestActivations(ranked, first.texts, first.prompts)
