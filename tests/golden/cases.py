"""The requests that every language builds, and the numbers of atlas's answers to them.

The requests go where languages differ: numbers beyond 32 bits, zeros that are not "unset", tensors as bytes, a oneof
without a value of its own. The answers are read as flat lists of numbers by name, in the row order of the contract's
shapes, so that nothing but the numbers and their order is compared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub

from tests.support import wire

SUBJECT = "The Eiffel Tower"
PROMPT = f"{SUBJECT} is in the city of"
HIDDEN_SIZE = 160
LARGEST_SEED = 2**32 - 1
SECONDS = 120.0

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Case:
    """A request of one method, and how its answer becomes numbers."""

    name: str
    method: str
    request: Any
    values: Callable[[Any], Values]
    """Of what the method answers: a message, or a stream of them."""

    def ask(self, stub: InspectionServiceStub) -> Values:
        """The numbers of a server's answer."""
        return self.values(getattr(stub, self.method)(self.request, timeout=SECONDS))

    def join(self, messages: Iterable[Any]) -> Values:
        """The numbers of messages that somebody else received."""
        received = list(messages)
        return self.values(received if self.method != "GetModel" else received[0])


# ---------------------------------------------------------------------- requests


def causal_trace() -> pb.TraceRequest:
    """A causal trace, with a seed that no signed 32-bit number holds."""
    return pb.TraceRequest(
        prompt=pb.Prompt(text=PROMPT),
        targets=[pb.Target(text=" Paris")],
        causal_tracing=pb.CausalTracing(
            subject_text=SUBJECT,
            window=3,
            gaussian=pb.CausalTracing.Gaussian(samples=4, seed=LARGEST_SEED),
        ),
    )


def sweep() -> pb.InterveneRequest:
    """Every head, ablated at all positions at once."""
    return pb.InterveneRequest(
        prompt=pb.Prompt(text=PROMPT),
        sweep=pb.Sweep(
            edit=pb.Edit(site=pb.Site(component=pb.COMPONENT_HEAD_OUT), scale=0.0), together=[pb.AXIS_POSITION]
        ),
        readout=pb.Readout(
            targets=[pb.Target(text=" Paris", contrast_text=" Rome")], top_k=3, kl_divergence=True, position=-1
        ),
    )


def edits() -> pb.InterveneRequest:
    """Three runs on token ids: a direction added from position 0 on, one number set, and noise with a knockout."""
    direction = (np.arange(HIDDEN_SIZE) % 7 - 3) / 8
    first = pb.Edit(
        site=pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[0], from_position=0), add=wire.tensor(direction)
    )
    second = pb.Edit(
        site=pb.Site(component=pb.COMPONENT_HEAD_OUT, layers=[4], units=[0], positions=[-1]), set=wire.tensor(0.25)
    )
    third = [
        pb.Edit(
            site=pb.Site(component=pb.COMPONENT_TOKEN_EMBEDDING, positions=[1]),
            noise=pb.Noise(standard_deviation=0.5, seed=0),
        ),
        pb.Edit(
            site=pb.Site(component=pb.COMPONENT_ATTENTION_SCORES, layers=[1, 2], positions=[-1]),
            knockout=pb.Knockout(key_positions=[0]),
        ),
    ]
    return pb.InterveneRequest(
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=range(10, 16))),
        list=pb.InterventionList(
            interventions=[pb.Intervention(edits=run) for run in ([first], [second], third)],
        ),
        readout=pb.Readout(
            targets=[pb.Target(id=0), pb.Target(id=20, contrast_id=0)],
            activations=[pb.Site(component=pb.COMPONENT_NEURON, layers=[7], positions=[-1])],
        ),
    )


def refused() -> pb.InterveneRequest:
    """Two faults in one request: a layer and a neuron that the model does not have."""
    site = pb.Site(component=pb.COMPONENT_NEURON, layers=[99], units=[-1])
    return pb.InterveneRequest(
        prompt=pb.Prompt(text=PROMPT),
        list=pb.InterventionList(interventions=[pb.Intervention(edits=[pb.Edit(site=site, scale=0.0)])]),
    )


# ---------------------------------------------------------------------- answers


def model_values(model: pb.GetModelResponse) -> Values:
    """The sizes of the model, 64-bit ones among them."""
    decoder = model.stacks[0]
    sizes = (decoder.layers, decoder.hidden_size, decoder.heads, decoder.key_value_heads, decoder.head_size)
    return {
        "sizes": [*sizes, decoder.neurons, model.vocabulary_size],
        "parameters": [model.parameters],
        "max_answer_bytes": [model.limits.max_answer_bytes],
    }


def context_values(context: pb.RunContext) -> Values:
    """What every answer begins with."""
    return {
        "tokens": [one.id for one in context.tokens],
        "targets": [one.id for one in context.targets],
        "position": [context.position],
        "clean": list(context.clean.log_probabilities),
        "clean_logits": list(context.clean.logits),
        "runs": [context.cost.runs],
    }


def trace_values(messages: Iterable[pb.TraceResponse]) -> Values:
    """The corrupted run, and a grid by component, [positions, layers, targets]."""
    answer = wire.join_trace(messages)
    assert answer.corruption is not None
    values = context_values(answer.context) | {
        "corrupted": list(answer.corruption.probabilities),
        "noise_deviation": [answer.corruption.noise_deviation],
    }
    for name in ("RESIDUAL_POST", "MLP_OUT", "ATTENTION_OUT"):
        layers, positions = sorted({layer for _, layer in answer.cells[name]}), range(len(answer.context.tokens))
        values[name.lower()] = answer.grid(name, "probabilities", layers, positions).ravel().tolist()
    return values


def intervene_values(messages: Iterable[pb.InterveneResponse]) -> Values:
    """The axes, each column by run, and the activations by run, the unchanged one first."""
    answer = wire.join_intervene(messages)
    values = context_values(answer.context)
    if answer.context.HasField("axes"):
        values |= {"layers": list(answer.context.axes.layers), "units": list(answer.context.axes.units)}
    for name, column in answer.columns.items():
        values[name] = column.ravel().tolist()
    if answer.activations:
        values["activations"] = np.concatenate(
            [answer.activations[key].ravel() for key in sorted(answer.activations)]
        ).tolist()
    return values


CASES = (
    Case("model", "GetModel", pb.GetModelRequest(), model_values),
    Case("causal_trace", "Trace", causal_trace(), trace_values),
    Case("sweep", "Intervene", sweep(), intervene_values),
    Case("edits", "Intervene", edits(), intervene_values),
)


def refusal(stub: InspectionServiceStub) -> dict[str, Any]:
    """How `refused` is answered: the code, the reason and the violations by field."""
    found = wire.refusal(stub.Intervene(refused(), timeout=SECONDS))
    code: int = found.code.value[0]
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    return {"code": code, "reasons": found.reasons, "violations": found.violations}
