"""The targets of a reduction: what they are called, and that they have statistics of their probabilities."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from sonde._answers.predictions import NO_TOKEN
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb

_Request: TypeAlias = pb.TraceRequest | pb.InterveneRequest
_Response: TypeAlias = pb.TraceResponse | pb.InterveneResponse


def asked_targets(request: _Request) -> Mapping[str, Sequence[Sequence[pb.Target]]]:
    """By group, the targets of each of its cases; none where a case measures what it predicts."""
    common = request.targets if isinstance(request, pb.TraceRequest) else request.readout.targets
    found: dict[str, list[Sequence[pb.Target]]] = {}
    for case in request.cases:
        found.setdefault(case.group, []).append(case.targets or common)
    return found


def rename(context: pb.RunContext, asked: Sequence[Sequence[pb.Target]]) -> None:
    """Give the targets that are not the same in all cases a name for all: `target`, or by number if there are several.

    The context has those of the first case. What every case predicts by itself is not known to be the same.
    """
    several = len(context.targets) > 1
    for number, token in enumerate(context.targets):
        given = [targets[number] for targets in asked if number < len(targets)]
        if len(asked) == 1 or (len(given) == len(asked) and _same(given)):
            continue
        numbered = f" {number}" if several else ""
        contrasted = any(target.WhichOneof("contrast") for target in given)
        text = f"target{numbered} - contrast{numbered}" if contrasted else f"target{numbered}"
        token.CopyFrom(pb.Token(id=NO_TOKEN, text=text))


def _same(given: Iterable[pb.Target]) -> bool:
    return len({(target.WhichOneof("token"), target.text, target.id) for target in given}) == 1


def check_probabilities(message: _Response) -> None:
    """Check that a part of a reduction has the statistics of its probabilities.

    Raises:
        ProtocolError: if it has not: those of the logarithms do not tell them.
    """
    lacking = message.HasField("context") and len(message.context.clean.probabilities) < len(message.context.targets)
    if isinstance(message, pb.TraceResponse):
        lacking = lacking or (message.HasField("layers") and not message.layers.HasField("probabilities"))
    else:
        lacking = lacking or (message.HasField("readings") and not message.readings.HasField("probabilities"))
    if lacking:
        raise ProtocolError("the answer has statistics of log-probabilities without those of the probabilities")
