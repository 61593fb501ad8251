"""Which token a run goes on with."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .layout import Row


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
    """A token for each row of logits [R, V]; of equals the first. None: the row's logits are not finite."""
    if choice.noise is None:
        tokens = logits.argmax(-1)
        # What is not a number, or infinite, is the largest.
        largest = logits.gather(-1, tokens[:, None])
    else:
        wide = logits.double()
        largest = wide.amax(-1, keepdim=True)
        # Less the largest, so that no temperature is too low to divide by.
        tokens = ((wide - largest) / choice.temperature + choice.noise.to(logits.device)).argmax(-1)
    pairs = zip(tokens.tolist(), largest.isfinite()[:, 0].tolist(), strict=True)
    return [int(token) if finite else None for token, finite in pairs]


def by_choice(rows: "Iterable[Row]") -> "dict[int, list[Row]]":
    """Rows that go on alike, so that one look at their logits serves them."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.choice is not None:
            groups[id(row.choice)].append(row)
    return groups
