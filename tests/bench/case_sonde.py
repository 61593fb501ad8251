"""Sonde over a loopback socket, a dataset in one request: the messages of the contract, as any client sends them."""

from collections.abc import Mapping

import grpc
import numpy as np
import numpy.typing as npt
from sonde._wire.tensors import from_tensor, to_tensor
from sonde.v1 import inspection_pb2 as pb
from sonde.v1 import inspection_pb2_grpc

from tests.bench.case_workloads import COMPONENTS, ROLES, CaseWorkload, Continuations, Facts, Pairs, Sentences
from tests.bench.workloads import Answer

_RESTORED = {
    "residual_post": pb.COMPONENT_RESIDUAL_POST,
    "mlp_out": pb.COMPONENT_MLP_OUT,
    "attention_out": pb.COMPONENT_ATTENTION_OUT,
}
assert tuple(_RESTORED) == COMPONENTS
_END = pb.NamedPositions(part=pb.SPAN_PART_LAST)
_SUBJECT = "subject"
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class CaseSocket:
    """The contract's messages, gRPC, a server process."""

    name = "Sonde, socket"
    omitted: Mapping[str, str] = {}

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED)
        self._stub = inspection_pb2_grpc.InspectionServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def pairs(self, workload: Pairs) -> Answer:
        """Mean logit differences by head: a sweep over heads, reduced on the server."""
        total = np.empty(len(workload.layers) * workload.heads)
        for part in self._stub.Intervene(_pairs(workload)):
            if part.HasField("readings") and part.reduction.statistic == pb.STATISTIC_MEAN:
                readings = part.readings
                total[readings.offset : readings.offset + readings.count] = from_tensor(readings.logits)[:, 0]
        return total.reshape(len(workload.layers), workload.heads)

    def sentences(self, workload: Sentences) -> Answer:
        """The residual stream of every sentence."""
        answer: npt.NDArray[np.float32] | None = None
        for part in self._stub.Trace(_sentences(workload)):
            for piece in part.activations:
                size = piece.shape[-1]
                if answer is None:
                    answer = np.empty((len(workload), workload.layers, size), np.float32)
                received = from_tensor(piece.values).reshape(-1)
                answer[part.case_index, piece.layer, piece.offset : piece.offset + len(received)] = received
        assert answer is not None
        return answer.astype(np.float64)

    def facts(self, workload: Facts) -> Answer:
        """The average causal trace, whose rows are the roles of tokens."""
        answer = np.full((len(ROLES), len(workload.layers), len(COMPONENTS)), np.nan)
        columns = {layer: number for number, layer in enumerate(workload.layers)}
        for part in self._stub.Trace(_facts(workload)):
            if part.reduction.statistic != pb.STATISTIC_MEAN:
                continue
            for grid in part.grids:
                kind = list(_RESTORED.values()).index(grid.component)
                read = from_tensor(grid.probabilities).reshape(len(grid.positions), len(grid.layers))
                for row, (role, count) in enumerate(zip(grid.positions, grid.counts, strict=True)):
                    if count:
                        answer[role, [columns[layer] for layer in grid.layers], kind] = read[row]
        return answer

    def continuations(self, workload: Continuations) -> Answer:
        """Log-probabilities of the tokens that the steered runs took."""
        answer = np.full((len(workload), workload.new_tokens), np.nan)
        for part in self._stub.Intervene(_continuations(workload)):
            for generated in part.generated:
                if generated.run == 0:
                    read = generated.log_probabilities
                    answer[part.case_index, generated.offset : generated.offset + len(read)] = read
        return answer

    def cost(self, workload: CaseWorkload) -> tuple[int, int]:
        """Token-layers, and rows that are unembedded, as a dry run announces them."""
        match workload:
            case Pairs() | Continuations():
                changes = _pairs(workload) if isinstance(workload, Pairs) else _continuations(workload)
                changes.dry_run = True
                cost = next(iter(self._stub.Intervene(changes))).context.cost
            case Sentences() | Facts():
                traces = _sentences(workload) if isinstance(workload, Sentences) else _facts(workload)
                traces.dry_run = True
                cost = next(iter(self._stub.Trace(traces))).context.cost
        readings = cost.runs + len(workload.cases)
        if isinstance(workload, Sentences):
            readings = len(workload)
        if isinstance(workload, Continuations):
            readings *= workload.new_tokens
        return cost.token_layers, readings


def _prompt(tokens: tuple[int, ...]) -> pb.Prompt:
    return pb.Prompt(token_ids=pb.TokenIds(ids=tokens))


def _pairs(workload: Pairs) -> pb.InterveneRequest:
    site = pb.Site(component=pb.COMPONENT_HEAD_OUT, layers=workload.layers, named_positions=[_END])
    return pb.InterveneRequest(
        cases=[
            pb.Case(
                prompt=_prompt(case.tokens),
                sources=[_prompt(case.source)],
                targets=[pb.Target(id=case.target, contrast_id=case.contrast)],
            )
            for case in workload.cases
        ],
        sweep=pb.Sweep(edit=pb.Edit(site=site, patch=pb.Patch(sources=[0]))),
        readout=pb.Readout(),
        reduction=pb.Reduction(),
    )


def _sentences(workload: Sentences) -> pb.TraceRequest:
    site = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, named_positions=[_END])
    return pb.TraceRequest(
        cases=[pb.Case(prompt=_prompt(tokens)) for tokens in workload.cases],
        activations=pb.Activations(sites=[site], data_type=pb.DATA_TYPE_BFLOAT16),
    )


def _facts(workload: Facts) -> pb.TraceRequest:
    cases = []
    for fact in workload.cases:
        prompt = _prompt(fact.tokens)
        prompt.spans.append(pb.Span(name=_SUBJECT, positions=pb.PositionList(positions=fact.subject)))
        cases.append(pb.Case(prompt=prompt, targets=[pb.Target(id=fact.target)]))
    noise = pb.CausalTracing.Gaussian(standard_deviation=workload.standard_deviation, samples=workload.samples)
    return pb.TraceRequest(
        cases=cases,
        causal_tracing=pb.CausalTracing(
            gaussian=noise,
            named_subject=pb.NamedPositions(span=_SUBJECT),
            components=list(_RESTORED.values()),
            window=workload.window,
            layers=workload.layers,
        ),
        reduction=pb.Reduction(),
    )


def _continuations(workload: Continuations) -> pb.InterveneRequest:
    site = pb.Site(component=pb.COMPONENT_RESIDUAL_POST, layers=[workload.layer], from_position=0)
    vector = np.array(workload.vector, np.float32)
    direction = to_tensor(vector, "vector")
    generation = pb.Generation(
        max_new_tokens=workload.new_tokens, ignore_end_token=True, log_probabilities=True, changed_only=True
    )
    return pb.InterveneRequest(
        cases=[pb.Case(prompt=_prompt(tokens)) for tokens in workload.cases],
        list=pb.InterventionList(interventions=[pb.Intervention(edits=[pb.Edit(site=site, add=direction)])]),
        readout=pb.Readout(generation=generation),
    )
