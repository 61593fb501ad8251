"""Questions of every kind, as a Python program asks them: the methods of a trace, edits, sweeps, and mistakes.

The clients are compared by them, and their methods have to reach every field of a request. A new method has a row here
that sets all its fields.
"""

from typing import Any

import numpy as np
import sonde

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"
IDS = [5, 130, 77, 301, 9, 260, 41]
SAME_LENGTH = sonde.Prompt([8, 131, 70, 12, 299, 261, 40])
TARGETS = [41, (200, 12)]
NEURON = sonde.neuron(layer=1, unit=[3, 5])
STREAM = sonde.residual(layer=2, position=-1)
SCORES = sonde.site("attention_scores", layers=[0, 1], positions=-1)
DRAWS = np.random.RandomState(0)
VECTOR = DRAWS.randn(48).astype(np.float32)
READ = (STREAM, sonde.site("attention_pattern", layers=1), sonde.site("logits", positions=-1))

# From the embedding and a head of block 0 to the logits, as components are numbered.
EDGES = sonde.Edges(np.array([[1, 0, 0], [7, 0, 1]]), np.array([[15, 0, 0]] * 2), np.ones((2, 1), np.float32))
EXAMPLES = sonde.Cases([sonde.Case(ids) for ids in (IDS, [8, 131, 70, 12, 299, 261, 40])])
CLAIM = sonde.prediction(
    other_labels=[0, 0],
    inputs=[
        sonde.claim(
            sonde.site("query", layers=2, units=1),
            labels=["a", "b"],
            inputs=[sonde.claim(sonde.head(layer=0, unit=1), direct=True)],
        )
    ],
)

Question = tuple[str, tuple[Any, ...], dict[str, Any]]


def traced(method: Any = None, prompt: Any = IDS, **options: Any) -> Question:
    return "trace", (prompt,), {"method": method, "targets": TARGETS} | options


def changed(plan: Any, **options: Any) -> Question:
    return "intervene", (IDS, plan), {"targets": TARGETS} | options


QUESTIONS: dict[str, Question] = {
    "a prediction": traced(),
    "a prediction of a text": traced(prompt=PROMPT, targets=None, top_k=3, position=2),
    "the logit lens": traced(sonde.TokenProbability()),
    "gradient norms": traced(sonde.TokenProbability(gradient_norms=True, metric="logit")),
    "a causal trace": traced(sonde.CausalTracing(subject=[1, 2], window=2)),
    "a causal trace by text": traced(sonde.CausalTracing(subject="Eiffel Tower", per_sample=True, seed=3), PROMPT),
    "a causal trace with noise": traced(sonde.CausalTracing(subject=[1], noise=DRAWS.randn(2, 1, 48))),
    "a causal trace of a counterfactual": traced(
        sonde.CausalTracing(counterfactual=SAME_LENGTH, components=["mlp_out", "token_embedding"], positions=[2, 3])
    ),
    "attribution patching": traced(sonde.AttributionPatching(SAME_LENGTH, ["mlp_out"])),
    "activations": traced(sonde.Activations(*READ)),
    "a dry run": traced(sonde.CausalTracing(subject=[1]), dry_run=True),
    "scale": changed([sonde.scale(NEURON, 0.0), sonde.scale(sonde.head(layer=2, unit=1), 3.0)]),
    "replace": changed([sonde.replace(STREAM, VECTOR)]),
    "add": changed([sonde.add(STREAM, VECTOR), sonde.add(sonde.residual(layer=1, from_position=3), VECTOR)]),
    "multiply": changed([sonde.multiply(STREAM, VECTOR)]),
    "patch": changed([sonde.patch(STREAM, [OTHER, SAME_LENGTH]), sonde.patch(STREAM, 0)], sources=[OTHER]),
    "noise": changed([sonde.noise(STREAM, 0.5, seed=4)]),
    "project out": changed([sonde.project_out(STREAM, VECTOR)]),
    "knockout": changed([sonde.knockout(SCORES, [1, 2])]),
    "edits together, with every readout": changed(
        [[sonde.scale(NEURON, 0.0), sonde.patch(STREAM, SAME_LENGTH)], sonde.knockout(SCORES, [0])],
        kl_divergence=True,
        activations=READ,
        position=-2,
        top_k=4,
    ),
    "no change at all": changed([]),
    "a sweep": changed(
        sonde.sweep(sonde.scale(sonde.neuron(), 0.0), layers=[1, 3], positions=[-1]), kl_divergence=True
    ),
    "a sweep over positions": changed(sonde.sweep(sonde.patch(sonde.residual(), SAME_LENGTH), layer_window=2)),
    "a sweep of heads": changed(sonde.sweep(sonde.scale(sonde.head(), 0.0), together="position"), top_k=2),
    "a change along a path": changed(
        [
            sonde.along(
                sonde.patch(sonde.head(layer=0, unit=1), SAME_LENGTH), sonde.site("logits"), sonde.site("mlp_out")
            )
        ]
    ),
    "circuits": changed(sonde.circuits(EDGES, patch=SAME_LENGTH)),
    "circuit discovery": traced(sonde.CircuitDiscovery(SAME_LENGTH, threshold=0.02)),
    "circuit discovery among some edges": traced(sonde.CircuitDiscovery(SAME_LENGTH, 0.1, "logit", EDGES)),
    "causal scrubbing": (
        "intervene",
        (EXAMPLES, sonde.CausalScrubbing(CLAIM, samples=3, seed=2)),
        {"targets": TARGETS},
    ),
    "causal scrubbing with draws": (
        "intervene",
        (EXAMPLES, sonde.CausalScrubbing(CLAIM, draws=np.zeros((1, 2, 3, 2), np.int32), references=[1])),
        {"targets": TARGETS},
    ),
    "generation": changed([sonde.scale(NEURON, 0.0)], generation=sonde.Generation(4)),
    "generation, several times": changed(
        [sonde.scale(NEURON, 0.0)],
        generation=sonde.Generation(
            4, 1.5, 7, True, 0.8, "q", 3, log_probabilities=True, activations=[sonde.residual(), sonde.site("logits")]
        ),
    ),
    "a sweep that only counts": changed(sonde.sweep(sonde.scale(sonde.head(), 0.0)), dry_run=True),
    "token probability in short": ("trace_token_probability", (IDS, 41), {}),
    "a neuron in short": ("intervene_on_neuron", (IDS, 1, 3, 0.5), {}),
    "a layer that is not there": changed([sonde.scale(sonde.neuron(layer=99, unit=0), 0.0)]),
    "three mistakes": changed([sonde.scale(sonde.neuron(layer=[99, 98], unit=1000), 0.0)], targets=["of course"]),
    "a subject that is not there": traced(sonde.CausalTracing(subject="Louvre"), PROMPT),
    "an empty prompt": traced(prompt=""),
    "too long a prompt": traced(prompt=[1] * 500),
}
