"""Patchscopes: have the model put a hidden state into words (Ghandeharioun et al. 2024, arXiv 2401.06102).

The state at a position and layer of one prompt is put into another prompt, which then goes on.
"""

from typing import Final, SupportsIndex

from sonde._answers.interventions import InterventionResult
from sonde._ask.edits import Edit, patch
from sonde._ask.indices import Indices, index, indices
from sonde._ask.plans import Generation
from sonde._ask.prompts import Prompt, PromptLike
from sonde._ask.sites import residual
from sonde.client import Client

IDENTITY_PROMPT: Final = "cat -> cat; 1135 -> 1135; hello -> hello; ?"
"""The paper's token identity prompt: a model that has learnt to repeat says what the state at its end stands for."""


def patchscope(
    source: str | Prompt,
    *,
    layer: SupportsIndex,
    position: int = -1,
    target_layer: SupportsIndex | None = None,
    target_position: int = -1,
) -> Edit:
    """The edit: what leaves block `layer` of the source at `position` leaves block `target_layer` of the prompt.

    Left out, the target's layer is the source's. Positions count from the end where they are negative.
    """
    into = layer if target_layer is None else target_layer
    place = residual(layer=[into], position=[target_position])
    return patch(place, source, source_positions=[position], source_layer=index(layer, "layer"))


def patchscopes(
    client: Client,
    source: PromptLike,
    *,
    position: int = -1,
    layers: Indices = None,
    prompt: PromptLike = IDENTITY_PROMPT,
    target_layer: SupportsIndex | None = None,
    target_position: int = -1,
    max_new_tokens: int = 20,
) -> InterventionResult:
    """What `prompt` goes on to say with the state of each layer of `source` in it: a run per layer, `result.generated`.

    Args:
        client: whom to ask.
        source: the prompt whose state is read.
        position: where in the source.
        layers: which blocks of the source; None: all.
        prompt: the prompt that puts it into words.
        target_layer: into which of its blocks; None: the same as in the source.
        target_position: where in it.
        max_new_tokens: how far it goes on; 20 in the paper.
    """
    chosen = indices(layers, "layers") or range(client.model.layers)
    from_prompt = source if isinstance(source, str | Prompt) else Prompt(source)
    plan = [
        patchscope(
            from_prompt, layer=layer, position=position, target_layer=target_layer, target_position=target_position
        )
        for layer in chosen
    ]
    return client.intervene(prompt, plan, generation=Generation(max_new_tokens))
