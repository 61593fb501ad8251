"""The examples as modules."""

import importlib.util
import sys
from typing import Any

from tests.support.installation import ROOT


def load_example(name: str) -> Any:
    """Runs the module `examples/NAME.py`, but not what it does as a program."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module
