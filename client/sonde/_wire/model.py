"""Decoding of the description of the hosted model."""

from dataclasses import fields

from sonde._answers.model import ComponentSupport, ImageInput, Limits, Model, Stack
from sonde._ask.names import STACK_NAMES, StackName, component_name
from sonde._wire.context import provenance
from sonde.errors import ProtocolError
from sonde.v1 import inspection_pb2 as pb


def description(response: pb.GetModelResponse) -> Model:
    """Decode the description of the hosted model.

    Raises:
        ProtocolError: if it describes no decoder.
    """
    stacks: dict[StackName, Stack] = {
        STACK_NAMES[s.stack]: _stack(s) for s in response.stacks if s.stack in STACK_NAMES
    }
    decoder = stacks.get("decoder")
    if decoder is None:
        raise ProtocolError("the server describes a model without a decoder")
    made = provenance(response.provenance)
    limits = response.limits
    return Model(
        **{field.name: getattr(decoder, field.name) for field in fields(decoder)},
        name=made.model,
        revision=made.revision,
        architecture=response.architecture,
        dtype=made.dtype,
        device=made.device,
        attention=made.attention,
        server_version=made.server_version,
        vocabulary_size=response.vocabulary_size,
        max_positions=response.max_positions,
        parameters=response.parameters,
        stacks=stacks,
        limits=Limits(
            limits.max_prompt_tokens or None,
            limits.max_runs or None,
            limits.max_answer_bytes or None,
            limits.max_cases or None,
            limits.max_total_tokens or None,
            limits.max_image_bytes or None,
            limits.max_image_pixels or None,
        ),
        chat_template=response.chat_template,
        image=_image(response.image) if response.HasField("image") else None,
    )


def _image(message: pb.ImageInput) -> ImageInput:
    return ImageInput(
        message.placeholder, message.token_id, message.min_positions, message.max_positions, message.sees_itself
    )


def _stack(message: pb.StackDescription) -> Stack:
    return Stack(
        message.layers,
        message.hidden_size,
        message.heads,
        message.key_value_heads,
        message.head_size,
        message.neurons,
        {component_name(c.component): ComponentSupport(c.available, c.reason) for c in message.components},
    )
