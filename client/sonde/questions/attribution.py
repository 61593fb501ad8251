"""Direct logit attribution: the direct contribution of each part of the model to a logit (Elhage et al. 2021).

https://transformer-circuits.pub/2021/framework. The scale of the final norm is that of the whole run, as in
nostalgebraist 2020 and TransformerLens's `logit_attrs`. No weights are needed: the norm is inferred from its output for
three residual streams, and each contribution is measured by subtracting the part from the input of the unembedding.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sonde._answers.findings import LogitAttribution
from sonde._ask.edits import add, replace, scale
from sonde._ask.prompts import PromptLike, TargetLike
from sonde._ask.sites import head, residual, site
from sonde._methods.activations import Activations
from sonde.client import Client
from sonde.errors import Unsupported

_Array = npt.NDArray[np.float64]

TOLERANCE = 1e-2
"""The largest accepted difference between the sum of the parts and the whole, relative to the sum of their magnitudes.

bfloat16 has about 3 digits.
"""


def direct_logit_attribution(
    client: Client, prompt: PromptLike, target: TargetLike, *, position: int = -1, heads: bool = False
) -> LogitAttribution:
    """Decompose a target's logit into the contributions of the embedding, each attention and each MLP.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        target: a token, or `(token, contrast)` for the difference between two logits.
        position: the position where the prediction is read.
        heads: decompose each attention by heads; the remainder (its bias) is `attention LAYER`.

    Raises:
        Unsupported: if the parts do not add up, because the model caps its logits or, with `heads`, has a norm between
            a head and the residual stream.
    """
    layers = client.model.layers
    here = [position]
    sites = [
        site("residual_pre", layers=[0], positions=here),
        site("attention_out", positions=here),
        site("mlp_out", positions=here),
        site("residual_post", layers=[layers - 1], positions=here),
        site("final_norm", positions=here),
    ]
    read = client.trace(prompt, method=Activations(*sites), top_k=0).activations
    start, attention, mlp, stream, normed = (_rows(read[number]) for number in range(5))
    names, parts = ["embedding"], [start[0]]
    by_head = _by_heads(client, prompt, position, attention) if heads else None
    for layer in range(layers):
        if by_head is not None:
            names += [f"head {layer}:{number}" for number in range(len(by_head[layer]))]
            parts += list(by_head[layer])
        names += [f"attention {layer}", f"mlp {layer}"]
        rest = 0.0 if by_head is None else by_head[layer].sum(0)
        parts += [attention[layer] - rest, mlp[layer]]
    through = _through_norm(client, prompt, position, stream[0], normed[0], np.array(parts))
    return _shares(client, prompt, target, position, names, through)


def _rows(values: "npt.NDArray[np.generic]") -> _Array:
    """Activations at one position: [layer, D]."""
    wide = values.astype(np.float64)
    return wide.reshape(-1, wide.shape[-1])


def _by_heads(client: Client, prompt: PromptLike, position: int, attention: _Array) -> list[_Array]:
    """For each layer, [head, D]: the output of attention minus its output without the head."""
    heads = client.model.heads

    def ask(layer: int) -> _Array:
        without = [scale(head(layer=[layer], unit=[number], position=[position]), 0.0) for number in range(heads)]
        without.append(scale(head(layer=[layer], position=[position]), 0.0))
        place = site("attention_out", layers=[layer], positions=[position])
        result = client.intervene(prompt, without, activations=[place], top_k=0)
        shares: _Array = attention[layer] - np.array([run.activations[0][0, 0] for run in result], np.float64)
        _check(shares[:-1].sum(0), shares[-1], shares[:-1], f"the heads of block {layer}")
        alone: _Array = shares[:-1]
        return alone

    return [ask(layer) for layer in range(len(attention))]


def _through_norm(
    client: Client, prompt: PromptLike, position: int, stream: _Array, normed: _Array, parts: _Array
) -> _Array:
    """The parts of the stream after the final norm, with its scale held fixed: [part, D]."""
    width = len(stream)
    probe = 100.0 * np.where(np.arange(width) % 2, -1.0, 1.0)
    last = residual(layer=[client.model.layers - 1], position=[position])
    streams = [np.zeros(width), np.full(width, 100.0), probe]
    place = site("final_norm", positions=[position])
    result = client.intervene(prompt, [replace(last, one) for one in streams], activations=[place], top_k=0)
    zero, flat, mixed = (run.activations[0][0].astype(np.float64) for run in result)
    # LayerNorm subtracts the mean, so a constant stream becomes its bias. RMSNorm does not.
    centring = np.linalg.norm(flat - zero) < 0.01 * np.linalg.norm(mixed - zero)

    def centred(values: _Array) -> _Array:
        return values - values.mean(-1, keepdims=True) if centring else values

    gain = (mixed - zero) * np.sqrt(np.mean(centred(probe) ** 2)) / centred(probe)
    unscaled = gain * centred(stream)
    over_scale = unscaled @ (normed - zero) / (unscaled @ unscaled)
    scaled: _Array = over_scale * gain * centred(parts)
    return scaled


def _shares(
    client: Client, prompt: PromptLike, target: TargetLike, position: int, names: Sequence[str], parts: _Array
) -> LogitAttribution:
    place = site("final_norm", positions=[position])
    plan = [add(place, -part) for part in (*parts, parts.sum(0))]
    result = client.intervene(prompt, plan, targets=[target], position=position, top_k=0)
    logit = float(result.clean.logits[0])
    shares = logit - result.logits[:, 0].astype(np.float64)
    _check(shares[:-1].sum(), shares[-1], shares[:-1], "the parts of the logit")
    return LogitAttribution(tuple(names), shares[:-1].astype(np.float32), logit - float(shares[-1]), logit)


def _check(total: "_Array | np.float64", whole: "_Array | np.float64", parts: _Array, what: str) -> None:
    if np.linalg.norm(total - whole) > TOLERANCE * np.abs(parts).sum():
        raise Unsupported(f"{what} do not add up: this model caps or normalizes their sum")
