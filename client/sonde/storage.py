"""Load results that `Result.save` has saved."""

from pathlib import Path
from typing import Any, Final

from sonde._answers import files
from sonde._answers.average_patching import AveragePatching
from sonde._answers.average_trace import AverageTrace
from sonde._answers.cases import CasesResult
from sonde._answers.circuits import Examples
from sonde._answers.edges import Edges
from sonde._answers.findings import (
    ActivationPatching,
    AttentionKnockout,
    LensTable,
    LogitAttribution,
    PathPatching,
    SteeringStrengths,
)
from sonde._answers.found_circuit import FoundCircuit
from sonde._answers.images import ImageGrid
from sonde._answers.interventions import InterventionResult
from sonde._answers.largest import LargestActivations, Ranked
from sonde._answers.predictions import Continuation, Prediction, Run, Token, TokenPrediction
from sonde._answers.reduced import Reduced, Statistics
from sonde._answers.requests import Request
from sonde._answers.results import Cost, Provenance, Result, TraceResult
from sonde._answers.scrubbing import ScrubbedNode, ScrubbingResult
from sonde._ask.named import NamedPositions
from sonde._ask.sites import Site
from sonde._methods.method import METHODS

_SHARED: Final = (
    Result,
    Cost,
    Provenance,
    Request,
    ImageGrid,
    Token,
    TokenPrediction,
    Continuation,
    Prediction,
    Run,
    Site,
    NamedPositions,
    TraceResult,
    InterventionResult,
    Examples,
    CasesResult,
    AveragePatching,
    AverageTrace,
    Reduced,
    Statistics,
    LargestActivations,
    Ranked,
    ActivationPatching,
    AverageTrace,
    AttentionKnockout,
    LensTable,
    LogitAttribution,
    PathPatching,
    SteeringStrengths,
    FoundCircuit,
    Edges,
    ScrubbingResult,
    ScrubbedNode,
)


def load(path: str | Path) -> Any:
    """Load a result that was saved: an object of the same class, with the same values.

    Raises:
        ValueError: if the file does not hold a result, or was written by a later version of Sonde.
        ImportError: if the file is `.safetensors` and the `safetensors` package is not installed.
        OSError: if the file cannot be read.
    """
    return files.read(path, known())


def known() -> dict[str, type[Any]]:
    """By name, the classes that can be in a saved result."""
    parts = (*_SHARED, *(part for kind in METHODS.values() for part in kind.parts))
    return {part.__name__: part for part in parts}
