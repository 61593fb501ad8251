"""Patchscopes: let the model describe a hidden state in words (Ghandeharioun et al. 2024, arXiv 2401.06102).

The state at one position and layer of a prompt is patched into another prompt, which then generates text.
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
"""The paper's token identity prompt, which makes the model name the token that the patched state represents."""


def patchscope(
    source: str | Prompt,
    *,
    layer: SupportsIndex,
    position: int = -1,
    target_layer: SupportsIndex | None = None,
    target_position: int = -1,
) -> Edit:
    """Return an edit that replaces the output of block `target_layer` with that of block `layer` of the source.

    The default target layer is the source's. Negative positions count from the end.
    """
    into = layer if target_layer is None else target_layer
    place = residual(layer=[into], position=[target_position])
    return patch(place, source, source_positions=[position], source_layer=index(layer, "layer"))


def patchscopes(  # noqa: PLR0913 - two prompts and the places in both, by keyword
    client: Client,
    source: PromptLike,
    *,
    position: int = -1,
    layers: Indices = None,
    prompt: PromptLike = IDENTITY_PROMPT,
    target_layer: SupportsIndex | None = None,
    target_position: int = -1,
    max_new_tokens: int = 20,
    top_k: int = 10,
) -> InterventionResult:
    """Let `prompt` generate text with the state of each layer of `source` patched in; see `result.generated`.

    There is one run per layer.

    Args:
        client: the client to use.
        source: the prompt from which the state is taken.
        position: the position of the state in the source.
        layers: the blocks of the source; None means all.
        prompt: the prompt that elicits a description of the state.
        target_layer: the block of `prompt` to patch; None means the same as in the source.
        target_position: the position in `prompt` to patch.
        max_new_tokens: how many tokens to generate; 20 in the paper.
        top_k: how many of the most probable tokens to return for each run.
    """
    chosen = indices(layers, "layers") or range(client.model.layers)
    from_prompt = source if isinstance(source, str | Prompt) else Prompt(source)
    plan = [
        patchscope(
            from_prompt, layer=layer, position=position, target_layer=target_layer, target_position=target_position
        )
        for layer in chosen
    ]
    return client.intervene(prompt, plan, generation=Generation(max_new_tokens), top_k=top_k)
