"""The embedded model, atlas: a small Llama that knows real facts, with the script that trains it.

Importing this package imports neither torch nor transformers.
"""

from pathlib import Path
from typing import Final

ATLAS_DIRECTORY: Final = Path(__file__).parent / "atlas"
"""The checkpoint's directory, in the layout that transformers loads."""
