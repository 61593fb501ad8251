"""The hosted model, and the provenance of numbers."""

from sonde.v1 import inspection_pb2 as pb

from ..config import Limits
from ..questions.images import Image
from ..questions.places import Component, ModelDescription

_DATA_TYPES = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "bfloat16": pb.DATA_TYPE_BFLOAT16,
    "float16": pb.DATA_TYPE_FLOAT16,
}
_LARGEST_INT32 = 2**31 - 1


def provenance(model: ModelDescription, attention: str, version: str, image: Image | None = None) -> pb.Provenance:
    """The provenance of an answer's numbers. `image`: that of the prompt."""
    return pb.Provenance(
        model=model.name,
        revision=model.revision,
        data_type=_DATA_TYPES.get(model.data_type, pb.DATA_TYPE_UNSPECIFIED),
        device=model.device,
        attention=attention,
        server_version=version,
        image_processor="" if image is None else image.processor,
    )


def encode_model(model: ModelDescription, limits: Limits, version: str) -> pb.GetModelResponse:
    """What can be asked of the model. Every component of the contract is listed."""
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
    message = pb.GetModelResponse(
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
            max_cases=min(limits.max_cases, _LARGEST_INT32),
            max_total_tokens=limits.max_total_tokens,
            max_image_bytes=min(limits.max_image_bytes, _LARGEST_INT32),
            max_image_pixels=min(limits.max_image_pixels, _LARGEST_INT32),
        ),
        chat_template=model.chat_template,
    )
    if model.image is not None:
        image = model.image
        message.image.CopyFrom(
            pb.ImageInput(
                placeholder=image.placeholder,
                token_id=image.token,
                min_positions=image.fewest,
                max_positions=image.most,
                sees_itself=image.sees_itself,
            )
        )
    return message
