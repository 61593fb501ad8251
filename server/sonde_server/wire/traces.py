"""The methods of a trace: their requests to questions, the parts of their answers to messages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sonde.v1 import inspection_pb2 as pb

from ..questions.answers import Answer
from ..questions.attribution_patching import Attributions, EdgeAttributions, VerifiedEffect
from ..questions.causal_tracing import Corruption, RestorationGrid
from ..questions.circuit_discovery import DiscoveredEdges
from ..questions.prediction import Prediction
from ..questions.prompts import Prompt
from ..questions.token_probability import LayerReadings
from ..questions.traces import Method
from .activations import read_activations
from .attribution_patching import encode_attributions, encode_edges, encode_verified, read_attribution_patching
from .causal_tracing import encode_corruption, encode_grid, read_causal_tracing
from .circuit_discovery import encode_discovered, read_circuit_discovery
from .fields import Reader
from .prompts import Texts
from .token_probability import encode_layers, read_token_probability


def read_method(
    request: pb.TraceRequest,
    prompt: Prompt | None,
    sources: Sequence[pb.Prompt] | None,
    targets: int,
    reader: Reader,
) -> Method | None:
    """The method that a request names; None if it is faulty. `sources`: those of a case; None: no cases."""
    match request.WhichOneof("method"):
        case "token_probability":
            return read_token_probability(request.token_probability, "token_probability", prompt, targets, reader)
        case "causal_tracing":
            return read_causal_tracing(request.causal_tracing, "causal_tracing", prompt, sources, targets, reader)
        case "attribution_patching":
            asked = request.attribution_patching
            return read_attribution_patching(asked, "attribution_patching", prompt, sources, targets, reader)
        case "activations":
            return read_activations(request.activations, "activations", prompt, reader)
        case "circuit_discovery":
            asked_for = request.circuit_discovery
            return read_circuit_discovery(asked_for, "circuit_discovery", prompt, sources, reader)
        case None:
            return Prediction()


# The messages of each kind of part that only one method gives.
_ENCODED: Mapping[type[Answer], Callable[[Any, Texts], Iterable[pb.TraceResponse]]] = {
    LayerReadings: lambda part, texts: (pb.TraceResponse(layers=some) for some in encode_layers(part, texts)),
    Corruption: lambda part, _: [pb.TraceResponse(corruption=encode_corruption(part))],
    RestorationGrid: lambda part, _: (pb.TraceResponse(grids=[some]) for some in encode_grid(part)),
    Attributions: lambda part, _: (pb.TraceResponse(attributions=[some]) for some in encode_attributions(part)),
    EdgeAttributions: lambda part, _: (pb.TraceResponse(edges=[some]) for some in encode_edges(part)),
    DiscoveredEdges: lambda part, _: (pb.TraceResponse(discovered=[some]) for some in encode_discovered(part)),
    VerifiedEffect: lambda part, _: [pb.TraceResponse(verified=[encode_verified(part)])],
}


def encode_part(part: Answer, texts: Texts) -> Iterable[pb.TraceResponse] | None:
    """The messages of a part that only one method gives; None for the other parts."""
    encoded = _ENCODED.get(type(part))
    return None if encoded is None else encoded(part, texts)
