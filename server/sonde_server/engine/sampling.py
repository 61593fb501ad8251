"""Which token continues a run."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The token after `position`: the most probable one, or with `noise` [V], float64, one drawn at a temperature.

    Drawn by the Gumbel-max trick: the token of the largest logit / temperature + noise, where the noise follows the
    standard Gumbel distribution. In float64, entry by entry, so that equal logits give the same token on every device.
    """

    position: int
    temperature: float = 0.0
    noise: Tensor | None = None


def choose(logits: Tensor, choice: Choice) -> list[int | None]:
    """A token for each row of logits [R, V], the first of equals. None: the row's logits are not finite."""
    if choice.noise is None:
        tokens = logits.argmax(-1)
        # NaN and infinity count as the largest.
        largest = logits.gather(-1, tokens[:, None])
    else:
        wide = logits.double()
        largest = wide.amax(-1, keepdim=True)
        # The largest is subtracted so that no temperature is too low to divide by.
        tokens = ((wide - largest) / choice.temperature + choice.noise.to(logits.device)).argmax(-1)
    pairs = zip(tokens.tolist(), largest.isfinite()[:, 0].tolist(), strict=True)
    return [int(token) if finite else None for token, finite in pairs]
