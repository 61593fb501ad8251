"""The embedded model."""

from pathlib import Path

ATLAS_DIRECTORY = Path(__file__).parent / "atlas"
