"""Computes runs with edits and readouts, with torch. Knows nothing of gRPC."""

from .engine import Engine
from .runs import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from .sampling import Choice, Taken
from .slots import Slot

__all__ = [
    "Base",
    "Capture",
    "Change",
    "Choice",
    "Engine",
    "PlacedEdit",
    "Reading",
    "Result",
    "Run",
    "Slot",
    "State",
    "Taken",
]
