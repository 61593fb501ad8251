"""Load results that `Result.save` has saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sonde._answers import files
from sonde._answers.interventions import InterventionResult
from sonde._answers.predictions import Continuation, Prediction, Run, Token, TokenPrediction
from sonde._answers.results import Cost, Provenance, Result, TraceResult
from sonde._ask.sites import Site
from sonde._methods.registry import METHODS

_SHARED: Final = (
    Result,
    Cost,
    Provenance,
    Token,
    TokenPrediction,
    Continuation,
    Prediction,
    Run,
    Site,
    TraceResult,
    InterventionResult,
)
_KNOWN: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind for kinds in (_SHARED, *(kind.parts for kind in METHODS.values())) for kind in kinds
}


def load(path: str | Path) -> Any:
    """Load a result that was saved: an object of the same class, with the same values.

    Raises:
        ValueError: if the file does not hold a result, or was written by a later version of Sonde.
        ImportError: if the file is `.safetensors` and the `safetensors` package is not installed.
        OSError: if the file cannot be read.
    """
    return files.read(path, _KNOWN)
