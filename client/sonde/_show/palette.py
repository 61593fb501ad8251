"""The title and the colours of each component in figures, notebooks and terminals."""

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

Rgb: TypeAlias = tuple[int, int, int]
Ramp: TypeAlias = tuple[Rgb, ...]
"""Colours from almost white to dark."""

PURPLES: Final[Ramp] = ((252, 251, 253), (188, 189, 220), (128, 125, 186), (84, 39, 143))
GREENS: Final[Ramp] = ((247, 252, 245), (161, 217, 155), (65, 171, 93), (0, 90, 50))
REDS: Final[Ramp] = ((255, 245, 240), (252, 146, 114), (239, 59, 44), (153, 0, 13))
BLUES: Final[Ramp] = ((247, 251, 255), (158, 202, 225), (66, 146, 198), (8, 69, 148))

SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
"""Colours of lines that can be told apart with any colour vision (Okabe and Ito 2008)."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""A second way to tell the lines apart, for prints without colours."""


class Look(NamedTuple):
    """The title and the colours of a component."""

    title: str
    """The title of its panel in a figure."""
    colour_map: str = "Blues"
    """A colour map of matplotlib."""
    hue: str = "one"
    """The variable in the style sheet (style.py) with its colour in a notebook."""
    ramp: Ramp = BLUES
    """The colours of its heat map in a terminal."""


_LOOKS: Final[Mapping[str, Look]] = {
    "residual_pre": Look("residual stream before the block"),
    "residual_mid": Look("residual stream within the block"),
    "residual_post": Look("residual stream after the block", "Purples", "one", PURPLES),
    "head_out": Look("attention head outputs"),
    "query": Look("queries"),
    "key": Look("keys"),
    "value": Look("values"),
    "neuron": Look("MLP neurons"),
    "mlp_out": Look("MLP output", "Greens", "mlp", GREENS),
    "attention_out": Look("attention output", "Reds", "attention", REDS),
}


def look(component: str) -> Look:
    """Return a component's title and colours; the default colour is blue."""
    return _LOOKS.get(component) or Look(component.replace("_", " "))


def words(component: str) -> str:
    """Return a component's name in words, such as `MLP out`."""
    return component.replace("_", " ").replace("mlp", "MLP")
