"""Ready-made analyses from the literature, each a few lines on top of `Client.trace` and `Client.intervene`.

    from sonde import questions

    direction = questions.steering_vector(client, [("I love it", "I hate it")], layers=[6])
    edits = questions.directional_ablation(direction[0], client.model.layers)

Functions that return edits or plans contact no server, and their results work with an `AsyncClient` too. The others use
a `Client`. What is about many prompts goes to the server as one dataset.
"""

from sonde._answers.average_patching import AveragePatching
from sonde._answers.average_trace import AverageTrace
from sonde._answers.findings import (
    ActivationPatching,
    AttentionKnockout,
    LensTable,
    LogitAttribution,
    PathPatching,
    SteeringStrengths,
)
from sonde._answers.found_circuit import FoundCircuit
from sonde._answers.scrubbing import ScrubbedNode, ScrubbingResult
from sonde._methods.causal_tracing import TOKEN_CLASSES
from sonde._readable import make_readable as _make_readable
from sonde.questions.attribution import direct_logit_attribution
from sonde.questions.average_trace import average_causal_trace, average_causal_trace_cost
from sonde.questions.circuits import find_circuit, path_patching
from sonde.questions.knockout import attention_knockout, knockout_sweep
from sonde.questions.lens import logit_lens
from sonde.questions.mean_ablation import mean_ablation, mean_activation
from sonde.questions.patching import activation_patching, average_activation_patching
from sonde.questions.patchscopes import IDENTITY_PROMPT, patchscope, patchscopes
from sonde.questions.scrubbing import causal_scrubbing
from sonde.questions.steering import directional_ablation, steer, steering_strengths, steering_vector

__all__ = [
    "IDENTITY_PROMPT",
    "TOKEN_CLASSES",
    "ActivationPatching",
    "AttentionKnockout",
    "AveragePatching",
    "AverageTrace",
    "FoundCircuit",
    "LensTable",
    "LogitAttribution",
    "PathPatching",
    "ScrubbedNode",
    "ScrubbingResult",
    "SteeringStrengths",
    "activation_patching",
    "attention_knockout",
    "average_activation_patching",
    "average_causal_trace",
    "average_causal_trace_cost",
    "causal_scrubbing",
    "direct_logit_attribution",
    "directional_ablation",
    "find_circuit",
    "knockout_sweep",
    "logit_lens",
    "mean_ablation",
    "mean_activation",
    "patchscope",
    "patchscopes",
    "path_patching",
    "steer",
    "steering_strengths",
    "steering_vector",
]

_make_readable(globals()[name] for name in __all__)
