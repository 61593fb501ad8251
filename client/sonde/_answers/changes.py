"""What changing one place did to a target, as one row of a ranking."""

from dataclasses import dataclass

from sonde._arrays import Label, visible


@dataclass(frozen=True, slots=True)
class Change:
    """The effect that changing one place had on a target."""

    run: int
    """The number of the run, counted from 0; `result[run]` has everything about it."""
    layer: Label
    unit: Label
    position: Label
    target: str
    effect: float
    """By the chosen measure; by default, the log-probability in this run minus that in the unchanged run."""
    probability: float
    clean_probability: float
    label: str = ""
    """The run's label; see `InterventionResult.labels`."""

    @property
    def place(self) -> str:
        """The place in a sweep, in words; otherwise the run's label."""
        return place_words((self.layer, self.unit, self.position)) or self.label or f"run {self.run}"

    def row(self) -> list[object]:
        """The change as a row of a table: target, probabilities before and after, and effect."""
        return [repr(visible(self.target)), self.clean_probability, self.probability, self.effect]

    def __repr__(self) -> str:
        return (
            f"Change({self.place}: {self.target!r} {self.clean_probability:.4g} -> {self.probability:.4g}, "
            f"effect {self.effect:+.4g})"
        )


def place_words(place: tuple[Label, Label, Label]) -> str:
    """Layer, unit and position of a run of a sweep, in words."""
    named = zip(("layer", "unit", "position"), place, strict=True)
    return ", ".join(f"{name} {label}" for name, label in named if label is not None)
