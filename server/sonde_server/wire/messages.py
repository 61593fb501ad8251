"""One part of an answer to one message of the contract."""

from collections.abc import Iterable, Mapping

import numpy as np
from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions import answers
from ..questions.places import LAYERLESS, Component, ModelDescription
from .tensors import encode_floats, encode_integers

_DATA_TYPES = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
    "float16": pb.DATA_TYPE_FLOAT16,
}
_LARGEST_INT32 = 2**31 - 1


def provenance(model: ModelDescription, attention: str, version: str) -> pb.Provenance:
    """Where numbers come from."""
    return pb.Provenance(
        model=model.name,
        revision=model.revision,
        data_type=_DATA_TYPES.get(model.data_type, pb.DATA_TYPE_UNSPECIFIED),
        device=model.device,
        attention=attention,
        server_version=version,
    )


def encode_model(model: ModelDescription, limits: Limits, version: str) -> pb.GetModelResponse:
    """What can be asked of the model; every component of the contract is listed."""
    components = [
        pb.ComponentSupport(
            component=pb.Component.ValueType(component),
            available=component not in model.unavailable,
            reason=model.unavailable.get(component, ""),
        )
        for component in Component
    ]
    stack = pb.StackDescription(
        stack=pb.STACK_DECODER,
        layers=model.layers,
        hidden_size=model.hidden_size,
        heads=model.heads,
        key_value_heads=model.key_value_heads,
        head_size=model.head_size,
        neurons=model.neurons,
        components=components,
    )
    return pb.GetModelResponse(
        provenance=provenance(model, model.attention, version),
        architecture=model.architecture,
        stacks=[stack],
        vocabulary_size=model.vocabulary_size,
        max_positions=min(model.max_positions, _LARGEST_INT32),
        parameters=model.parameters,
        limits=pb.Limits(
            max_prompt_tokens=min(limits.max_prompt_tokens, _LARGEST_INT32),
            max_runs=min(limits.max_runs, _LARGEST_INT32),
            max_answer_bytes=limits.max_answer_bytes,
        ),
    )


def encode_context(
    context: answers.Context, texts: Mapping[int, str], model: ModelDescription, version: str
) -> pb.RunContext:
    """What comes first."""
    message = pb.RunContext(
        tokens=_tokens(context.tokens, texts),
        targets=_tokens([target.token for target in context.targets], texts),
        position=context.position,
        cost=pb.Cost(
            runs=context.cost.runs,
            token_layers=context.cost.token_layers,
            full_token_layers=context.cost.full_token_layers,
            answer_bytes=context.cost.answer_bytes,
        ),
        provenance=provenance(model, context.attention, version),
    )
    if context.clean is not None:
        clean = context.clean
        message.clean.CopyFrom(
            pb.Prediction(
                log_probabilities=clean.log_probabilities.tolist(),
                logits=clean.logits.tolist(),
                top_tokens=_tokens(clean.top_tokens.tolist(), texts),
                top_log_probabilities=clean.top_log_probabilities.tolist(),
            )
        )
    if context.axes is not None:
        axes = context.axes
        message.axes.CopyFrom(pb.Axes(layers=axes.layers, units=axes.units, positions=axes.positions))
    return message


def encode_readings(readings: answers.Readings, texts: Mapping[int, str]) -> pb.Readings:
    """Some runs of the plan."""
    message = pb.Readings(
        offset=readings.offset,
        count=len(readings.log_probabilities),
        log_probabilities=encode_floats(readings.log_probabilities),
        logits=encode_floats(readings.logits),
        edit_norms=encode_floats(readings.edit_norms),
        token_texts=dict(texts),
    )
    if readings.top_tokens.shape[1]:
        message.top_token_ids.CopyFrom(encode_integers(readings.top_tokens))
        message.top_log_probabilities.CopyFrom(encode_floats(readings.top_log_probabilities))
    if readings.kl_divergences is not None:
        message.kl_divergences.CopyFrom(encode_floats(readings.kl_divergences))
    return message


def encode_layers(layers: answers.LayerReadings, texts: Mapping[int, str]) -> pb.LayerReadings:
    """Some depths."""
    message = pb.LayerReadings(
        depths=layers.depths,
        log_probabilities=encode_floats(layers.log_probabilities),
        logits=encode_floats(layers.logits),
        ranks=encode_integers(layers.ranks),
        kl_divergences=encode_floats(layers.kl_divergences),
        positions=layers.positions,
        token_texts=dict(texts),
    )
    if layers.top_tokens.shape[1]:
        message.top_token_ids.CopyFrom(encode_integers(layers.top_tokens))
        message.top_log_probabilities.CopyFrom(encode_floats(layers.top_log_probabilities))
    if layers.gradient_norms is not None:
        message.gradient_norms.CopyFrom(encode_floats(layers.gradient_norms))
    return message


def encode_corruption(corruption: answers.Corruption) -> pb.Corruption:
    """The corrupted runs."""
    message = pb.Corruption(
        probabilities=corruption.probabilities.tolist(),
        deviations=corruption.deviations.tolist(),
        positions=corruption.positions,
        noise_deviation=corruption.noise_deviation,
        logits=corruption.logits.tolist(),
    )
    if corruption.sample_probabilities is not None:
        message.sample_probabilities.CopyFrom(encode_floats(corruption.sample_probabilities))
    return message


def encode_grid(grid: answers.RestorationGrid) -> pb.RestorationGrid:
    """Some places of one component."""
    message = pb.RestorationGrid(
        component=pb.Component.ValueType(grid.component),
        positions=grid.positions,
        layers=grid.layers,
        probabilities=encode_floats(grid.probabilities),
        deviations=encode_floats(grid.deviations),
        logits=encode_floats(grid.logits),
    )
    if grid.sample_probabilities is not None:
        message.sample_probabilities.CopyFrom(encode_floats(grid.sample_probabilities))
    return message


def encode_attributions(part: answers.Attributions) -> pb.Attributions:
    """Some places of one component."""
    return pb.Attributions(
        component=pb.Component.ValueType(part.component),
        layers=part.layers,
        positions=part.positions,
        estimates=encode_floats(part.estimates),
    )


def encode_edges(part: answers.EdgeAttributions) -> pb.EdgeAttributions:
    """Some edges."""
    return pb.EdgeAttributions(
        offset=part.offset,
        senders=encode_integers(part.senders),
        receivers=encode_integers(part.receivers),
        estimates=encode_floats(part.estimates),
    )


def encode_verified(effect: answers.VerifiedEffect) -> pb.VerifiedEffect:
    """An estimate beside what was measured."""
    site = effect.site
    place = pb.Site(
        component=pb.Component.ValueType(site.component),
        layers=() if site.component in LAYERLESS else site.layers,
        units=site.units or (),
        positions=site.positions or (),
    )
    return pb.VerifiedEffect(site=place, estimated=effect.estimated.tolist(), measured=effect.measured.tolist())


def encode_slice(
    activation: answers.Activation, offset: int, values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
) -> pb.ActivationSlice:
    """Some values of an activation, from `offset` on, counted row by row."""
    return pb.ActivationSlice(
        run=activation.run,
        site=activation.site,
        layer=activation.layer,
        shape=activation.values.shape,
        offset=offset,
        values=encode_floats(values),
    )


def _tokens(ids: Iterable[int], texts: Mapping[int, str]) -> list[pb.Token]:
    return [pb.Token(id=token, text=texts[token]) for token in ids]
