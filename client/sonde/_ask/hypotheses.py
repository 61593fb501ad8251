"""Hypotheses for causal scrubbing: trees of places, and what is claimed to matter of each."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from sonde._ask.given import refusal, several
from sonde._ask.indices import index
from sonde._ask.sites import Site

Labels = Iterable[Hashable] | None
"""One for each example, in the order of the cases; those with equal labels are as good as each other. None: all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A node of a hypothesis. Made by `claim()` and, the first one, by `prediction()`."""

    site: Site | None
    labels: tuple[Hashable, ...]
    other_labels: tuple[Hashable, ...]
    direct: bool
    inputs: "tuple[Claim, ...]"

    def flat(self, parent: int | None = None, first: int = 0) -> "Iterator[tuple[Claim, int | None]]":
        """The nodes of the tree, parents first, each with the number of its parent."""
        # Without recursion: hypotheses can be deeper than calls may be nested.
        waiting: list[tuple[Claim, int | None]] = [(self, parent)]
        while waiting:
            one, above = waiting.pop()
            yield one, above
            waiting += [(below, first) for below in reversed(one.inputs)]
            first += 1


def prediction(*, labels: Labels = None, other_labels: Labels = None, inputs: Claim | Iterable[Claim] = ()) -> Claim:
    """The first node of a hypothesis: what the model predicts.

    Args:
        labels: what matters of an example for its prediction; the default is nothing.
        other_labels: what matters of the example that everything comes from that is not claimed; the default is
            nothing, so that any example will do.
        inputs: the places that the prediction depends on, made by `claim()`.
    """
    return Claim(None, _labels(labels, "labels"), _labels(other_labels, "other_labels"), False, _claims(inputs))


def claim(
    site: Site,
    *,
    labels: Labels = None,
    other_labels: Labels = None,
    direct: bool = False,
    inputs: Claim | Iterable[Claim] = (),
) -> Claim:
    """A place, and the claim that only `labels` matter of it.

    Args:
        site: where it is, with its layers.
        labels: one for each example, any hashable values: the place may have its value from any example with the same
            label. The default is nothing, so that it may come from any example.
        other_labels: likewise for the example that all its inputs come from which are not claimed.
        direct: only what the parent itself reads of the residual stream sees the value; the default is that all that
            comes after the place does.
        inputs: the places that this one depends on.

    Raises:
        InvalidRequest: if the site is not one, or an input is not a claim.
    """
    if not isinstance(site, Site):
        raise refusal("site", "a site such as sonde.head(layer=0, unit=1)", site)
    return Claim(site, _labels(labels, "labels"), _labels(other_labels, "other_labels"), direct, _claims(inputs))


@dataclass(frozen=True, slots=True, eq=False)
class CausalScrubbing:
    """Test a hypothesis by causal scrubbing (Chan et al. 2022): a plan for `Client.intervene` with `Cases`.

    The cases are the examples, of as many tokens each; the answer has a result for each of them as the reference.

    Args:
        hypothesis: the tree, made by `prediction()`.
        samples: how many times examples are drawn for each reference; the default is 1.
        seed: the seed of the draws; the default is 1.
        draws: the examples themselves, [reference, sample, node, 2], to replay those of a result.
        references: the cases that are asked about; the default is all.
    """

    hypothesis: Claim
    samples: int | None = None
    seed: int | None = None
    draws: npt.NDArray[np.int32] | None = None
    references: Iterable[SupportsIndex] | None = None

    @property
    def asked(self) -> tuple[int, ...]:
        """`references` as numbers; empty: all."""
        return tuple(index(one, "references") for one in several(self.references or (), "references", "cases"))


def numbered(labels: tuple[Hashable, ...]) -> list[int]:
    """Labels as integers, equal where the labels are."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(label, len(known)) for label in labels]


def _labels(given: Labels, name: str) -> tuple[Hashable, ...]:
    labels = () if given is None else several(given, name, "one label for each example")
    for number, label in enumerate(labels):
        try:
            hash(label)
        except TypeError:
            raise refusal(f"{name}[{number}]", "a hashable label, such as a number, a text or a tuple", label) from None
    return labels


def _claims(given: Claim | Iterable[Claim]) -> tuple[Claim, ...]:
    claims = (given,) if isinstance(given, Claim) else several(given, "inputs", "claims")
    for one in claims:
        given_one: object = one
        if not isinstance(given_one, Claim) or given_one.site is None:
            raise refusal("inputs", "claims such as sonde.claim(site)", one)
    return claims
