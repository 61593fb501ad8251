"""See inside a transformer and change it, over gRPC.

    import sonde

    with sonde.Client("localhost:50051") as client:
        trace = client.trace(
            "The Eiffel Tower is in the city of",
            targets=[" Paris"],
            method=sonde.CausalTracing(subject="The Eiffel Tower"),
        )
        trace.restored["residual_post"]  # numpy [position, layer, target]

Connect:  Client, AsyncClient, TLS, Model
Ask:      Client.trace with a method (CausalTracing, AttributionPatching, TokenProbability, Activations,
          CircuitDiscovery), Client.intervene with a plan (edits, a list or mapping of them, a sweep, circuits, or
          CausalScrubbing of a hypothesis made of prediction and claim)
Prompts:  text, token ids, Prompt, Chat; many of them: Cases of Case, with Span and span for places by name
Places:   residual, head, neuron, site
Edits:    scale, replace, add, multiply, patch, noise, project_out, knockout; along a path; sweep; Generation
Answers:  each has plot(), to_dataframe(), save(path), to_text() and request; load(path) reads a saved one
Errors:   SondeError, and what is beneath it

`help(sonde.Client.trace)` describes a call and `help(sonde.CausalTracing)` a method; `sonde.questions` has ready-made
analyses. The names of types in signatures are those of `sonde.annotations`.

Importing this package imports grpc, protobuf and numpy, but never torch, matplotlib or pandas.
"""

from sonde._answers.captured import Captured
from sonde._answers.cases import CasesResult
from sonde._answers.changes import Change
from sonde._answers.circuits import Examples
from sonde._answers.edges import Edge, Edges, Nodes
from sonde._answers.interventions import InterventionResult
from sonde._answers.largest import LargestActivations
from sonde._answers.model import Model
from sonde._answers.predictions import Continuation, Prediction, Run, Token, TokenPrediction
from sonde._answers.reduced import Reduced, Statistics
from sonde._answers.requests import Request
from sonde._answers.results import Cost, Provenance, Result, TraceResult
from sonde._answers.tokens import Tokens
from sonde._ask.cases import Case, Cases
from sonde._ask.circuits import Circuits, circuits
from sonde._ask.edits import Edit, add, along, knockout, multiply, noise, patch, project_out, replace, scale
from sonde._ask.hypotheses import CausalScrubbing, Claim, claim, prediction
from sonde._ask.named import span
from sonde._ask.plans import Generation, Sweep, sweep
from sonde._ask.prompts import Chat, Prompt, Target
from sonde._ask.sites import Site, head, neuron, residual, site
from sonde._ask.spans import Span
from sonde._connection.connection import TLS
from sonde._connection.replicas import ReplicasDiffer
from sonde._methods.activations import Activations, ActivationsResult
from sonde._methods.attribution_patching import AttributionPatching, AttributionPatchingResult
from sonde._methods.causal_tracing import CausalTracing, CausalTracingResult
from sonde._methods.circuit_discovery import CircuitDiscovery, CircuitDiscoveryResult
from sonde._methods.token_probability import TokenProbability, TokenProbabilityResult
from sonde._readable import make_readable as _make_readable
from sonde._version import __version__
from sonde.aio import AsyncClient
from sonde.client import Client
from sonde.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    InvalidSettings,
    NotServing,
    PermissionDenied,
    ProtocolError,
    SondeError,
    Unauthenticated,
    Unsupported,
    Violation,
)
from sonde.storage import load

__all__ = [
    "TLS",
    "Activations",
    "ActivationsResult",
    "AsyncClient",
    "AttributionPatching",
    "AttributionPatchingResult",
    "Busy",
    "Cancelled",
    "Captured",
    "Case",
    "Cases",
    "CasesResult",
    "CausalScrubbing",
    "CausalTracing",
    "CausalTracingResult",
    "Change",
    "Chat",
    "CircuitDiscovery",
    "CircuitDiscoveryResult",
    "Circuits",
    "Claim",
    "Client",
    "Continuation",
    "Cost",
    "DeadlineExceeded",
    "Edge",
    "Edges",
    "Edit",
    "Examples",
    "Generation",
    "InternalError",
    "InterventionResult",
    "InvalidRequest",
    "InvalidSettings",
    "LargestActivations",
    "Model",
    "Nodes",
    "NotServing",
    "PermissionDenied",
    "Prediction",
    "Prompt",
    "ProtocolError",
    "Provenance",
    "Reduced",
    "ReplicasDiffer",
    "Request",
    "Result",
    "Run",
    "Site",
    "SondeError",
    "Span",
    "Statistics",
    "Sweep",
    "Target",
    "Token",
    "TokenPrediction",
    "TokenProbability",
    "TokenProbabilityResult",
    "Tokens",
    "TraceResult",
    "Unauthenticated",
    "Unsupported",
    "Violation",
    "__version__",
    "add",
    "along",
    "circuits",
    "claim",
    "head",
    "knockout",
    "load",
    "multiply",
    "neuron",
    "noise",
    "patch",
    "prediction",
    "project_out",
    "replace",
    "residual",
    "scale",
    "site",
    "span",
    "sweep",
]

_make_readable(globals()[name] for name in __all__)
