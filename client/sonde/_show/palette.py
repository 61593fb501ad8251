"""How each component looks: its title and its colours in figures, notebooks and terminals."""

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

Rgb: TypeAlias = tuple[int, int, int]
Ramp: TypeAlias = tuple[Rgb, ...]
"""Colours from almost white to the dark end."""

PURPLES: Final[Ramp] = ((252, 251, 253), (188, 189, 220), (128, 125, 186), (84, 39, 143))
GREENS: Final[Ramp] = ((247, 252, 245), (161, 217, 155), (65, 171, 93), (0, 90, 50))
REDS: Final[Ramp] = ((255, 245, 240), (252, 146, 114), (239, 59, 44), (153, 0, 13))
BLUES: Final[Ramp] = ((247, 251, 255), (158, 202, 225), (66, 146, 198), (8, 69, 148))


class Look(NamedTuple):
    """How a component is drawn."""

    title: str
    """Above its panel in a figure."""
    colour_map: str = "Blues"
    """The name of matplotlib's colour map."""
    hue: str = "one"
    """The variable of the style sheet (style.py) that has its colour in a notebook."""
    ramp: Ramp = BLUES
    """Its colours in a terminal."""


_LOOKS: Final[Mapping[str, Look]] = {
    "residual_pre": Look("residual stream before the block"),
    "residual_mid": Look("residual stream within the block"),
    "residual_post": Look("residual stream after the block", "Purples", "one", PURPLES),
    "mlp_out": Look("MLP output", "Greens", "mlp", GREENS),
    "attention_out": Look("attention output", "Reds", "attention", REDS),
}


def look(component: str) -> Look:
    """How a component is drawn; those without colours of their own are blue."""
    return _LOOKS.get(component) or Look(component.replace("_", " "))


def words(component: str) -> str:
    """A component's name in words, such as `MLP out`."""
    return component.replace("_", " ").replace("mlp", "MLP")
