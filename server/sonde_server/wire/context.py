"""The context: the first part of every answer."""

from collections.abc import Mapping

from sonde.v1 import inspection_pb2 as pb

from ..questions import answers
from ..questions.places import ModelDescription
from .images import encode_grids
from .model import provenance
from .prompts import encode_tokens


def encode_context(
    context: answers.Context, texts: Mapping[int, str], model: ModelDescription, version: str
) -> pb.RunContext:
    """The context."""
    message = pb.RunContext(
        tokens=encode_tokens(context.tokens, texts),
        targets=encode_tokens([target.token for target in context.targets], texts),
        position=context.position,
        cost=pb.Cost(
            runs=context.cost.runs,
            token_layers=context.cost.token_layers,
            full_token_layers=context.cost.full_token_layers,
            answer_bytes=context.cost.answer_bytes,
            cases=context.cost.cases,
            tokens=context.cost.tokens,
        ),
        provenance=provenance(model, context.attention, version, context.image),
        spans=[pb.TokenSpan(name=name, positions=positions) for name, positions in context.spans],
        images=encode_grids(context.image),
    )
    if context.clean is not None:
        clean = context.clean
        message.clean.CopyFrom(
            pb.Prediction(
                log_probabilities=clean.log_probabilities.tolist(),
                logits=clean.logits.tolist(),
                top_tokens=encode_tokens(clean.top_tokens.tolist(), texts),
                top_log_probabilities=clean.top_log_probabilities.tolist(),
                probabilities=() if clean.probabilities is None else clean.probabilities.tolist(),
            )
        )
    if context.axes is not None:
        axes = context.axes
        message.axes.CopyFrom(pb.Axes(layers=axes.layers, units=axes.units, positions=axes.positions))
    return message
