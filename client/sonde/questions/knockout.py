"""Attention knockout: block attention in a window of layers to find where it moves information.

Geva et al. 2023 (arXiv 2304.14767), with a window of 9 layers.
"""

from sonde._answers.findings import AttentionKnockout
from sonde._arrays import Floats
from sonde._ask.edits import knockout
from sonde._ask.indices import Indices
from sonde._ask.named import PositionsLike, positions
from sonde._ask.plans import Sweep, sweep
from sonde._ask.prompts import PromptLike, TokenLike
from sonde._ask.sites import site
from sonde.client import Client
from sonde.errors import InvalidRequest


def knockout_sweep(
    keys: PositionsLike, *, queries: PositionsLike = -1, window: int = 9, layers: Indices = None, heads: Indices = None
) -> Sweep:
    """Return a plan with one run per layer l, which blocks attention around it; window 9 is l - 4 to l + 4."""
    if not positions(keys, "keys"):
        raise InvalidRequest.at("keys", "expected the positions to block, got none")
    edit = knockout(site("attention_scores", units=heads, positions=queries), keys)
    return sweep(edit, layers=layers, together=("unit", "position"), layer_window=window)


def attention_knockout(
    client: Client,
    prompt: PromptLike,
    keys: PositionsLike,
    *,
    queries: PositionsLike = -1,
    target: TokenLike | None = None,
    window: int = 9,
    layers: Indices = None,
    heads: Indices = None,
) -> AttentionKnockout:
    """Measure how the target's probability changes when `queries` cannot attend to `keys` around each layer.

    Args:
        client: the client to use.
        prompt: the prompt to run.
        keys: the positions that are hidden, such as those of the subject, by number or by name.
        queries: the positions that cannot attend to them; the default is the last.
        target: the token to measure; None measures the unchanged run's own top prediction, as in the paper.
        window: how many layers are blocked together.
        layers: the centres of the windows; None means all layers.
        heads: the heads that are blocked; None means all heads.
    """
    plan = knockout_sweep(keys, queries=queries, window=window, layers=layers, heads=heads)
    result = client.intervene(prompt, plan, targets=None if target is None else [target], top_k=1)
    before = result.clean.probabilities[0]
    changes: Floats = 100 * (result.probabilities[:, 0, 0, 0] - before) / before
    return AttentionKnockout(tuple(int(layer or 0) for layer in result.axes["layer"]), changes, result)
