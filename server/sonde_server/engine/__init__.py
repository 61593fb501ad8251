"""Runs with edits and readouts, over torch; knows nothing of gRPC."""

from .engine import Engine
from .runs import Base, Capture, Change, PlacedEdit, Reading, Result, Run, State

__all__ = ["Base", "Capture", "Change", "Engine", "PlacedEdit", "Reading", "Result", "Run", "State"]
