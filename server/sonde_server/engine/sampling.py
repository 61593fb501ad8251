"""Which token continues a run."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

# So many of the most probable tokens are looked at first; they mostly have the probability that is asked for.
_NEAR = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The token after `position`: the most probable one, or with `noise` [V], float64, one drawn at a temperature.

    Drawn by the Gumbel-max trick: the token of the largest logit / temperature + noise, where the noise follows the
    standard Gumbel distribution. In float64, entry by entry, so that equal logits give the same token on every device.

    top_p: drawn from the fewest most probable tokens that together have this probability at the temperature; of equally
    probable ones, those of the lowest ids. Below 1 that is nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751).
    log_probability: whether to give that of the token, at temperature 1 and among all tokens.
    """

    position: int
    temperature: float = 0.0
    noise: Tensor | None = None
    top_p: float = 1.0
    log_probability: bool = False

    @property
    def way(self) -> Hashable:
        """Equal for choices that differ in their positions alone."""
        return self.temperature, None if self.noise is None else id(self.noise), self.top_p, self.log_probability


@dataclass(frozen=True, slots=True)
class Taken:
    """A token that was chosen, and its log-probability where that was asked for."""

    token: int
    log_probability: float | None = None


def choose(logits: Tensor, choice: Choice) -> list[Taken | None]:
    """A token for each row of logits [R, V], the first of equals. None: the row's logits are not finite."""
    if choice.noise is None:
        tokens = logits.argmax(-1)
        # NaN and infinity count as the largest.
        largest = logits.gather(-1, tokens[:, None])
    else:
        wide = logits.double()
        largest = wide.amax(-1, keepdim=True)
        # The largest is subtracted so that no temperature is too low to divide by.
        scaled = (wide - largest) / choice.temperature
        scores = scaled + choice.noise.to(logits.device)
        if choice.top_p < 1:
            scores = scores.masked_fill(~nucleus(torch.softmax(scaled, dim=-1), choice.top_p), -torch.inf)
        tokens = scores.argmax(-1)
    given: list[float | None] = [None] * len(logits)
    if choice.log_probability:
        given = list(torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, None])[:, 0].tolist())
    found = zip(tokens.tolist(), largest.isfinite()[:, 0].tolist(), given, strict=True)
    return [Taken(int(token), known) if finite else None for token, finite, known in found]


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The fewest most probable tokens of each row [R, V] whose probabilities add up to `top_p`, as a mask.

    Of tokens with the same probability those with lower ids come first.
    """
    vocabulary = probabilities.shape[-1]
    values = probabilities.topk(min(_NEAR, vocabulary), dim=-1).values
    if not bool((values.sum(-1) >= top_p).all()):
        values = probabilities.topk(vocabulary, dim=-1).values
    # A token is kept if those before it do not suffice.
    before = torch.nn.functional.pad(values.cumsum(-1)[:, :-1], (1, 0))
    kept = (before < top_p).sum(-1, keepdim=True)
    least = values.gather(-1, kept - 1)
    above, equal = probabilities > least, probabilities == least
    return above | (equal & (equal.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))
