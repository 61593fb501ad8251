"""The list of the methods that a trace can use."""

from collections.abc import Mapping
from typing import Any, Final

from sonde._methods import activations, attribution_patching, causal_tracing, token_probability
from sonde._methods.method import Kind, Method

METHODS: Final[Mapping[type[Method[Any]], Kind]] = {
    token_probability.TokenProbability: token_probability.KIND,
    causal_tracing.CausalTracing: causal_tracing.KIND,
    attribution_patching.AttributionPatching: attribution_patching.KIND,
    activations.Activations: activations.KIND,
}
