"""Runs with edits and readouts, over torch; knows nothing of gRPC."""

from .decoding import Slot
from .engine import Engine
from .runs import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State
from .sampling import Choice

__all__ = ["Base", "Capture", "Change", "Choice", "Engine", "PlacedEdit", "Reading", "Result", "Run", "Slot", "State"]
