"""Where attention moves what the prediction needs: it is cut in a window of layers.

Geva et al. 2023 (arXiv 2304.14767), whose window is 9 layers.
"""

from dataclasses import dataclass

from sonde._answers.interventions import InterventionResult
from sonde._arrays import Floats
from sonde._ask.edits import knockout
from sonde._ask.indices import Indices, indices
from sonde._ask.plans import Sweep, sweep
from sonde._ask.prompts import PromptLike, TokenLike
from sonde._ask.sites import site
from sonde.client import Client
from sonde.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class AttentionKnockout:
    """What cutting attention around each layer does to the target."""

    layers: tuple[int, ...]
    """The centres of the windows."""
    changes: Floats
    """[layer]: the change of the target's probability, in percent of that of the unchanged run."""
    result: InterventionResult
    """Everything else about the changed runs."""


def knockout_sweep(
    keys: Indices, *, queries: Indices = -1, window: int = 9, layers: Indices = None, heads: Indices = None
) -> Sweep:
    """One run per layer: in the layers around it the queries do not see the keys. Window 9 is l - 4 to l + 4."""
    if not indices(keys, "keys"):
        raise InvalidRequest.at("keys", "none was given; name the positions that are not attended to")
    edit = knockout(site("attention_scores", units=heads, positions=queries), keys)
    return sweep(edit, layers=layers, together=("unit", "position"), layer_window=window)


def attention_knockout(
    client: Client,
    prompt: PromptLike,
    keys: Indices,
    *,
    queries: Indices = -1,
    target: TokenLike | None = None,
    window: int = 9,
    layers: Indices = None,
    heads: Indices = None,
) -> AttentionKnockout:
    """The relative change of the target's probability when `queries` do not attend to `keys`, layer by layer.

    Args:
        client: whom to ask.
        prompt: what is run.
        keys: the positions that are not attended to, such as the subject's.
        queries: the positions that do not attend to them; the last.
        target: the token; None: the unchanged run's own top prediction, as in the paper.
        window: how many layers are cut together.
        layers: the centres of the windows; None: all.
        heads: the heads that are cut; None: all.
    """
    plan = knockout_sweep(keys, queries=queries, window=window, layers=layers, heads=heads)
    result = client.intervene(prompt, plan, targets=None if target is None else [target], top_k=1)
    before = result.clean.probabilities[0]
    changes: Floats = 100 * (result.probabilities[:, 0, 0, 0] - before) / before
    return AttentionKnockout(tuple(int(layer or 0) for layer in result.axes["layer"]), changes, result)
