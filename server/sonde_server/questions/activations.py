"""What are the activations?"""

from dataclasses import dataclass

from .places import Site


@dataclass(frozen=True, slots=True)
class Activations:
    """The values at these sites."""

    sites: tuple[Site, ...]
